"""Canonicalize: one spelling an operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxcompress.aliasing import is_inplace, is_private
from fxcompress.errors import PassError
from fxcompress.operators import TRANSPOSED, is_product

SHAPED = ("permute", "reshape")
"""Methods that take a shape spread over their arguments."""

FUNCTION_OF: dict[Any, Any] = {
    "add": torch.add, "mul": torch.mul, "flatten": torch.flatten, "reshape": torch.reshape, "permute": torch.permute,
    "transpose": torch.transpose, "squeeze": torch.squeeze, "unsqueeze": torch.unsqueeze, "chunk": torch.chunk,
    "split": torch.split, "unbind": torch.unbind, "relu": F.relu, "matmul": torch.matmul,
    "bmm": torch.matmul, torch.bmm: torch.matmul, "mm": torch.matmul, torch.mm: torch.matmul, "addmm": torch.addmm,
 torch.concat: torch.cat, torch.concatenate: torch.cat,
}  # fmt: skip
"""Methods and synonyms, and the function that computes the same bits."""

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, "add_": torch.add, "mul_": torch.mul,
    "relu_": F.relu, torch.relu_: F.relu,
}  # fmt: skip


LINEAR: dict[str, Any] = {"input": None, "weight": None, "bias": None}
CONVOLUTION = LINEAR | {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
TRANSPOSED_CONVOLUTION = LINEAR | {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
"""Parameters of the products in order, and their defaults."""


@dataclass(frozen=True)
class Canonicalize:
    """Spell methods, synonyms and in-place operators as one function each, and the arguments of products by position.

    Before:  %add_ = .add_(%conv, %x)
    After:   %add_ = add(%conv, %x)

    Ensures:  no product has keyword arguments.
    Leaves alone: in-place operators whose tensor somebody else may see; reshape and permute by keyword or by a computed
                  shape.
    """

    name: ClassVar[str] = "canonicalize"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Rename the targets."""
        calls = [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")]
        todo = [(n, FUNCTION_OF[n.target]) for n in calls if n.target in FUNCTION_OF and not _differs(n)]
        todo += [(n, OUT_OF_PLACE[n.target]) for n in calls if n.target in OUT_OF_PLACE and is_private(gm, n.args[0])]
        relus = [n for n in calls if n.target is F.relu and is_inplace(n) and is_private(gm, n.args[0])]
        products = [n for n in calls if is_product(n) and n.kwargs]
        for node, function in todo:
            node.args = _with_one_shape(node)
            node.op, node.target = "call_function", function
        for node in relus:
            node.args, node.kwargs = node.args[:1], {}
        for node in products:
            node.args, node.kwargs = _by_position(node), {}
        return bool(todo or relus or products)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a product has keyword arguments."""
        for node in gm.graph.nodes:
            if is_product(node) and node.kwargs:
                raise PassError(f"product '{node.name}' has keyword arguments {sorted(node.kwargs)}")


def _differs(node: Node) -> bool:
    return _has_computed_shape(node) or (FUNCTION_OF[node.target] is torch.matmul and bool(node.kwargs))


def _has_computed_shape(node: Node) -> bool:
    # A lone node may be one size or a whole torch.Size; only a tensor's method takes either.
    return node.target in SHAPED and (len(node.args) < 2 or (len(node.args) == 2 and isinstance(node.args[1], Node)))


def _with_one_shape(node: Node) -> tuple[Any, ...]:
    # x.permute(0, 2, 1) and x.reshape(2, -1) spread what the function takes as one tuple.
    if node.target not in SHAPED or isinstance(node.args[1], (tuple, list)):
        return node.args
    return (node.args[0], node.args[1:])


def _by_position(product: Node) -> tuple[Any, ...]:
    transposed = TRANSPOSED_CONVOLUTION if product.target in TRANSPOSED else CONVOLUTION
    parameters = LINEAR if product.target is F.linear else transposed
    given = dict(zip(parameters, product.args, strict=False)) | product.kwargs
    count = 1 + max(i for i, name in enumerate(parameters) if name in given)
    return tuple(given.get(name, default) for name, default in list(parameters.items())[:count])
