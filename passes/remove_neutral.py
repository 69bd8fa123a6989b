"""Remove neutral operators."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import bypass, site, writes_in_place
from fxcompress.operators import ADDS, MULS, called, is_activation
from fxcompress.placement import is_written

NEUTRAL: dict[Any, int] = {
    **dict.fromkeys(MULS | {torch.div, operator.truediv, "div"}, 1),
    **dict.fromkeys(ADDS | {torch.sub, operator.sub, "sub"}, 0),
}
"""By which number an operator leaves its first argument as it is."""


@dataclass(frozen=True)
class RemoveNeutral:
    """Remove operators that hand their input on as it is: x * 1, x / 1, x + 0, x - 0, `Identity`.

    PyTorch's exporter removes them too, and then merges what has become the same; here passes see it.

    Before:  %mul = mul(%x, 1)
             %mul_quantizer = compression.mul_quantizer:Quantizer(%mul)
    After:   %mul_quantizer = compression.mul_quantizer:Quantizer(%x)

    Ensures:  no such operator is left.
    Leaves alone: operators that change the type or the memory layout; what reads or makes a tensor that is written to.
    """

    name: ClassVar[str] = "remove-neutral"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Bypass each."""
        todo = [n for n in gm.graph.nodes if _is_neutral(gm, n)]
        for node in todo:
            node.args = node.args[:1]
            bypass(gm, node)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for node in gm.graph.nodes:
            if _is_neutral(gm, node):
                raise PassError(f"'{site(node)}' hands its input on as it is")


def _is_neutral(gm: GraphModule, node: Node) -> bool:
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or not (is_activation(node) and is_activation(x)) or node.kwargs:
        return False
    ours, theirs = node.meta["tensor_meta"], x.meta["tensor_meta"]
    same = (ours.dtype, ours.shape, ours.stride) == (theirs.dtype, theirs.shape, theirs.stride)
    function = called(gm, node)
    number = node.args[1] if len(node.args) == 2 else None
    by_number = isinstance(number, (int, float)) and NEUTRAL.get(function) == number
    if not same or not (by_number or function is nn.Identity):
        return False
    return not (writes_in_place(gm, node) or is_written(gm, node) or is_written(gm, x))
