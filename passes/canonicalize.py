"""Canonicalize: one spelling an operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxcompress.operators import called, is_activation, is_value_preserving

FUNCTION_OF: dict[Any, Any] = {
    "add": torch.add, "mul": torch.mul, "flatten": torch.flatten, "reshape": torch.reshape, "permute": torch.permute,
    "transpose": torch.transpose, "squeeze": torch.squeeze, "unsqueeze": torch.unsqueeze, "chunk": torch.chunk,
    "split": torch.split, "unbind": torch.unbind, "relu": F.relu,
    torch.relu: F.relu, torch.concat: torch.cat, torch.concatenate: torch.cat,
}  # fmt: skip
"""Methods and synonyms, and the function that computes the same bits."""

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, "add_": torch.add, "mul_": torch.mul,
    "relu_": F.relu, torch.relu_: F.relu,
}  # fmt: skip


@dataclass(frozen=True)
class Canonicalize:
    """Spell methods, synonyms and in-place operators as one function each.

    Before:  %add_ = .add_(%conv, %x)
    After:   %add_ = add(%conv, %x)

    Ensures:  no method or synonym that has a function is left.
    Leaves alone: in-place operators whose tensor somebody else may see.
    """

    name: ClassVar[str] = "canonicalize"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Rename the targets."""
        renamed = [n for n in gm.graph.nodes if n.op.startswith("call_f") or n.op == "call_method"]
        todo = [(n, FUNCTION_OF[n.target]) for n in renamed if n.target in FUNCTION_OF and _takes_reshape_arguments(n)]
        todo += [
            (n, OUT_OF_PLACE[n.target]) for n in renamed if n.target in OUT_OF_PLACE and _is_private(gm, n.args[0])
        ]
        relus = [n for n in renamed if n.target is F.relu and _is_inplace(n) and _is_private(gm, n.args[0])]
        for node, function in todo:
            node.op, node.target = "call_function", function
        for node in relus:
            node.args, node.kwargs = node.args[:1], {}
        return bool(todo or relus)

    def ensures(self, gm: GraphModule) -> None:
        """Nothing that the rewrite does not show."""


def _takes_reshape_arguments(node: Node) -> bool:
    # x.permute(0, 2, 1) and x.reshape(2, -1) spread what the function takes as one tuple.
    if (
        node.op == "call_method"
        and node.target in ("permute", "reshape")
        and not isinstance(node.args[1], (tuple, list))
    ):
        node.args = (node.args[0], node.args[1:])
    return True


def _is_inplace(node: Node) -> bool:
    return bool(node.kwargs.get("inplace", len(node.args) > 1 and node.args[1]))


def _is_private(gm: GraphModule, node: Any) -> bool:
    """Whether nobody but its one user can see the memory of `node`'s value."""
    while isinstance(node, Node) and len(node.users) == 1 and is_activation(node) and node.op != "placeholder":
        if not (is_value_preserving(gm, node) or _may_alias(gm, node)):
            return True
        node = node.args[0]
    return False


def _may_alias(gm: GraphModule, node: Node) -> bool:
    target = called(gm, node)
    inplace_module = node.op == "call_module" and getattr(gm.get_submodule(str(node.target)), "inplace", False)
    return bool(inplace_module) or node.op == "call_method" or target in OUT_OF_PLACE or _is_inplace(node)
