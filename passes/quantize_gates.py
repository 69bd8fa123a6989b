"""Quantize gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxcompress.aliasing import is_private
from fxcompress.errors import PassError
from fxcompress.gates import GATE
from fxcompress.graph import module_of, replace, site, writes_in_place
from fxcompress.operators import SILUS, called
from fxcompress.quantizer import Quantizer


@dataclass(frozen=True)
class QuantizeGates:
    """Hand the quantizer behind SiLU the function's input too, so that it rounds x q(sigmoid(x)) once it is enabled.

    Runtimes have integer kernels for sigmoid and multiplication, and none for SiLU. The sigmoid lies between 0 and 1, so
    its grid is known. Until its event the quantizer returns what SiLU computed.

    Before:  %silu = silu:SiLU(%bn_quantizer)
             %silu_quantizer = compression.silu_quantizer:Quantizer(%silu)
    After:   %silu = silu(%bn_quantizer)
             %silu_quantizer = compression.silu_quantizer:Quantizer(%silu, %bn_quantizer)

    Ensures:  every SiLU between two quantizers is gated.
    Leaves alone: SiLU without a quantizer of at most 8 bits on either side; SiLU in place on a tensor that somebody else
              may see.
    """

    name: ClassVar[str] = "quantize-gates"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Hand over the inputs; the function no longer writes in place, for its input is still needed."""
        todo = [n for n in gm.graph.nodes if _is_between_quantizers(gm, n)]
        for function in todo:
            [quantizer], x = function.users, function.args[0]
            if writes_in_place(gm, function):
                function.meta["owner"] = _owner(gm, function)
                replace(function, F.silu, (x,))
            quantizer.args = (function, x)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for node in gm.graph.nodes:
            if _is_between_quantizers(gm, node):
                raise PassError(f"'{site(node)}' stands between two quantizers and is not gated")


def _is_between_quantizers(gm: GraphModule, node: Node) -> bool:
    if called(gm, node) not in SILUS or len(node.users) != 1 or not isinstance(node.args[0], Node):
        return False
    x, [user] = node.args[0], node.users
    quantizers = [module_of(gm, n) for n in (x, user)]
    if not all(isinstance(q, Quantizer) and q.grid.bits <= GATE.bits for q in quantizers) or len(user.args) > 1:
        return False
    return not writes_in_place(gm, node) or is_private(gm, x)


def _owner(gm: GraphModule, function: Node) -> tuple[str, str]:
    if function.op != "call_module":
        return cast(tuple[str, str], function.meta.get("owner", ("", "")))
    return str(function.target), type(module_of(gm, function)).__name__
