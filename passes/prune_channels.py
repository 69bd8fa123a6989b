"""Prune channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import COMPRESSION, insert_after, module_of
from fxcompress.groups import Masked
from fxcompress.operators import is_fusible_activation, shape_of
from fxcompress.pruner import Pruner


@dataclass(frozen=True)
class PruneChannels:
    """Insert pruners of whole channels: on weights, on what is added, and behind normalizations, which shift zeros.

    A ReLU behind a normalization stays next to it, where runtimes fuse it; the mask stands behind both.

    Before:  %conv_weight = conv.weight
             %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
             %bn = bn:BatchNorm2d(%conv)
    After:   %conv_weight = conv.weight
             %conv_weight_pruner = compression.conv.weight_pruner:Pruner(%conv_weight)
             %conv = conv2d(%x, %conv_weight_pruner, None, (1, 1), (0, 0), (1, 1), 1)
             %bn = bn:BatchNorm2d(%conv)
             %bn_channels = compression.bn_channels:Pruner(%bn)

    Ensures:  every parameter and every normalization in `masked` has one user, its pruner (or an activation function with one).
    Leaves alone: what has its pruner already.
    """

    name: ClassVar[str] = "prune-channels"
    masked: Masked

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Insert the pruners."""
        todo = [n for n in gm.graph.nodes if self._concerns(gm, n) and not _is_pruned(gm, _end(gm, n))]
        for node in todo:
            if node.op == "get_attr":
                axis, length = self.masked.parameters[str(node.target)]
                shape = [length if a == axis else 1 for a in range(len(shape_of(node)))]
                insert_after(
                    gm,
                    node,
                    f"{COMPRESSION}.{node.target}_pruner",
                    Pruner(tuple(shape), shape_of(node), self.masked.rules.get(str(node.target))),
                )
            else:
                ones = (1,) * (len(shape_of(node)) - 2)
                pruner = Pruner((self.masked.norms[str(node.target)], *ones))
                insert_after(gm, _end(gm, node), f"{COMPRESSION}.{node.target}_channels", pruner)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a tensor can be read past its pruner."""
        for node in gm.graph.nodes:
            if self._concerns(gm, node) and not _is_pruned(gm, _end(gm, node)):
                raise PassError(f"'{node.target}' has users besides its pruner: {list(node.users)}")

    def _concerns(self, gm: GraphModule, node: Node) -> bool:
        if node.op == "get_attr":
            return str(node.target) in self.masked.parameters
        return node.op == "call_module" and str(node.target) in self.masked.norms


def _end(gm: GraphModule, node: Node) -> Node:
    """The activation function that alone reads a normalization, or else the node itself."""
    user = next(iter(node.users), None)
    is_alone = node.op == "call_module" and user is not None and len(node.users) == 1
    return user if is_alone and is_fusible_activation(gm, user) else node  # type: ignore[return-value,arg-type]


def _is_pruned(gm: GraphModule, node: Node) -> bool:
    return len(node.users) == 1 and isinstance(module_of(gm, next(iter(node.users))), Pruner)
