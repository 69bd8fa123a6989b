"""Merge duplicates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import tensor_at, writes_in_place
from fxcompress.operators import (
    ADDS,
    AVERAGE_POOLS,
    BATCH_NORMS,
    MATMULS,
    MULS,
    PRODUCTS,
    RELU6S,
    RELUS,
    SOFTMAXES,
    VALUE_PRESERVING,
    called,
)
from fxcompress.placement import is_written
from fxcompress.qdq import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE_DEQUANTIZE
from fxcompress.symbols import NUMERIC

QDQ = {DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE_DEQUANTIZE}
PURE = NUMERIC | {
    torch.zeros, torch.ones, torch.full, torch.arange, torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros",
    "new_ones", getattr, "size", "dim", torch.sub, torch.div, torch.exp, torch.pow, torch.sqrt, torch.rsqrt, torch.mean,
    "mean", torch.sigmoid, torch.tanh, "unflatten", "expand",
}  # fmt: skip
"""Operators that runtimes compute in float, and what makes tensors and shapes."""
REPEATABLE = (
    PURE
    | MATMULS
    | SOFTMAXES
    | PRODUCTS
    | ADDS
    | MULS
    | AVERAGE_POOLS
    | RELUS
    | RELU6S
    | VALUE_PRESERVING
    | set(BATCH_NORMS)
    | QDQ
)
"""Operators known to yield the same for the same inputs in evaluation, besides what `torch.nn` has."""
_LIBRARY = ("torch.nn.modules.", "torch.nn.functional", "torch._C._nn")
_OF_TRAINING = ("training", "momentum", "num_batches_tracked", "inplace")
"""What of a module plays no part in evaluation."""
_DRAWS = ("dropout", "fractional", "rrelu", "gumbel")


@dataclass(frozen=True)
class MergeDuplicates:
    """Compute once what is computed twice from the same inputs, as PyTorch's exporter does, but where passes see it.

    Constants of equal value count as one, and so do modules of equal classes, settings and tensors.

    Before:  %flatten = flatten(%x_quantizer, 1)
             %flatten_1 = flatten(%x_quantizer, 1)
             %mul = mul(%flatten, %flatten_1)
    After:   %flatten = flatten(%x_quantizer, 1)
             %mul = mul(%flatten, %flatten)

    Requires: evaluation mode.
    Ensures:  no two nodes call the same thing on the same inputs.
    Leaves alone: operators that write in place, and what reads a tensor that is written to.
    """

    name: ClassVar[str] = "merge-duplicates"

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError in training mode, where two calls of one dropout differ."""
        if gm.training:
            raise PassError("the net is in training mode; merge in a copy in evaluation mode")

    def rewrite(self, gm: GraphModule) -> bool:
        """Hand the users of each later duplicate to the first."""
        first: dict[Any, Node] = {}
        merged = False
        for node in list(gm.graph.nodes):
            key = _key(gm, node)
            if key is None or first.setdefault(key, node) is node:
                continue
            node.replace_all_uses_with(first[key])
            gm.graph.erase_node(node)
            merged = True
        return merged

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a duplicate is left."""
        keys = [key for node in gm.graph.nodes if (key := _key(gm, node)) is not None]
        if len(set(keys)) != len(keys):
            raise PassError("two nodes still compute the same")


def _key(gm: GraphModule, node: Node) -> Any:
    """What `node` computes, as something to compare; None where a duplicate may differ."""
    if node.op == "get_attr":
        return _content(gm, node)
    if not _is_repeatable(gm, node) or writes_in_place(gm, node):
        return None
    if any(is_written(gm, n) for n in (node, *node.all_input_nodes)):
        return None
    what = _module(gm.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return (node.op, what, repr(node.args), repr(node.kwargs))


def _is_repeatable(gm: GraphModule, node: Node) -> bool:
    """Whether `node` is known to yield the same for the same inputs: it draws nothing and keeps no state."""
    what = called(gm, node)
    return what is not None and (what in REPEATABLE or _is_of_library(what))


def _is_of_library(what: Any) -> bool:
    """Whether `what` is a function or a module class of `torch.nn` that draws nothing in evaluation."""
    home, name = str(getattr(what, "__module__", "")), str(getattr(what, "__name__", "")).lower()
    return home.startswith(_LIBRARY) and not any(word in name for word in _DRAWS)


def _content(gm: GraphModule, node: Node) -> Any:
    # Constants are equal by value: the exporter stores them once, whatever their names are.
    value: Any = tensor_at(gm, str(node.target))
    return (node.op, _value(value) if isinstance(value, torch.Tensor) else node.target)


def _value(tensor: Tensor) -> Any:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return (tensor.dtype, tensor.shape, hashlib.sha256(data.numpy().tobytes()).digest())


def _module(module: nn.Module) -> Any:
    """What a module computes in evaluation: the classes, settings and tensors of it and of all inside."""
    found: list[Any] = []
    for name, part in module.named_modules():
        settings = {k: v for k, v in vars(part).items() if not k.startswith("_") and k not in _OF_TRAINING}
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        found.append((name, type(part), repr(settings), *((k, _value(t)) for k, t in tensors if k not in _OF_TRAINING)))
    return tuple(found)
