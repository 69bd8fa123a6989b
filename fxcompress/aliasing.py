"""Who can see the memory of a node's value."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from fxcompress.operators import (
    ADDS,
    AVERAGE_POOLS,
    MULS,
    PRODUCTS,
    RELU6S,
    RELUS,
    called,
    is_activation,
    is_value_preserving,
)
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

FRESH: frozenset[Any] = PRODUCTS | ADDS | MULS | RELUS | RELU6S | AVERAGE_POOLS
"""Operators known to yield new memory when they are not in place."""


def is_inplace(node: Node) -> bool:
    """Whether the arguments of a function say so."""
    return bool(node.kwargs.get("inplace")) or any(a is True for a in node.args[1:])


def is_private(gm: GraphModule, node: Any) -> bool:
    """Whether nobody but its one user can see the memory of `node`'s value."""
    while isinstance(node, Node) and len(node.users) == 1 and is_activation(node) and node.op != "placeholder":
        if not (is_value_preserving(gm, node) or _may_alias(gm, node)):
            return True
        node = node.args[0]
    return False


def _may_alias(gm: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return isinstance(module, Pruner | Quantizer) or bool(getattr(module, "inplace", False))
    return called(gm, node) not in FRESH or is_inplace(node)
