"""Fold constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxcompress.constants import evaluate
from fxcompress.errors import PassError
from fxcompress.graph import drop_dead_code, insert_constants, module_of, site
from fxcompress.operators import bias_of, is_constant, is_product
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer


@dataclass(frozen=True)
class FoldConstants:
    """Store weights and biases that are computed from parameters (weight norm, standardization, parts of a packed
    bias) as the values they have.

    Before:  %weight = weight
             %gain = gain
             %mul = mul(%weight, %gain)
             %linear_weight_quantizer = compression.linear.weight_quantizer:Quantizer(%mul)
    After:   %linear_weight_value = linear.weight_value
             %linear_weight_quantizer = compression.linear.weight_quantizer:Quantizer(%linear_weight_value)

    Requires: evaluation mode.
    Ensures:  pruners and quantizers of weights, and products, read stored weights and biases.
    Leaves alone: constants that something else reads.
    """

    name: ClassVar[str] = "fold-constants"

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError in training mode."""
        if gm.training:
            raise PassError("the net is in training mode; weights are constant in evaluation mode only")

    def rewrite(self, gm: GraphModule) -> bool:
        """Compute each, then let the graph read it."""
        todo = list(_computed(gm))
        for user, computed, name in todo:
            _fold(gm, user, computed, name)
        return drop_dead_code(gm) or bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a computed constant is left."""
        for user, computed, _ in _computed(gm):
            raise PassError(f"'{computed.name}', which '{user.name}' reads, is still computed")


def _computed(gm: GraphModule) -> Iterator[tuple[Node, Node, str]]:
    """What reads a computed constant, the constant, and a name for it."""
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, (Pruner, Quantizer)) and _is_computed(gm, node.args[0]):
            name = str(node.target).removeprefix("compression.")
            yield node, node.args[0], name.removesuffix("_pruner").removesuffix("_quantizer")
        elif is_product(node) and _is_computed(gm, bias_of(node)):
            yield node, bias_of(node), f"{site(node)}.bias"


def _is_computed(gm: GraphModule, node: object) -> bool:
    if not isinstance(node, Node) or node.op == "get_attr" or not is_constant(node):
        return False
    return not isinstance(module_of(gm, node), (Pruner, Quantizer))


def _fold(gm: GraphModule, user: Node, computed: Node, name: str) -> None:
    owner, _, attribute = name.rpartition(".")
    value = evaluate(gm, computed).clone()
    [stored] = insert_constants(gm, user, owner, {f"{attribute}_value": value})
    stored.meta["site"] = name
    user.replace_input_with(computed, stored)
