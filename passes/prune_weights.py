"""Prune weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.graph import COMPRESSION, insert_after, module_of
from fxcompress.operators import shape_of
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.rules import Prune
from fxcompress.sites import Site, find_sites, tail


@dataclass(frozen=True)
class PruneWeights:
    """Insert a pruner after every weight that has a rule, behind its quantizer if that is there already.

    Before:  %fc_weight = fc.weight
             %fc = linear(%x, %fc_weight, %fc_bias)
    After:   %fc_weight = fc.weight
             %fc_weight_pruner = compression.fc.weight_pruner:Pruner(%fc_weight)
             %fc = linear(%x, %fc_weight_pruner, %fc_bias)

    Requires: every name in `rules` is a weight of a product.
    Ensures:  a weight with a rule has one user, its pruner.
    Leaves alone: biases; weights already pruned.
    """

    name: ClassVar[str] = "prune-weights"
    rules: Mapping[str, Prune]

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if a name is no weight."""
        refuse_unknown(self.rules, [s.name for s in find_sites(gm) if s.kind == "weight" and s.prunable], "weight")

    def rewrite(self, gm: GraphModule) -> bool:
        """Insert the pruners."""
        todo = [s for s in self._sites(gm) if not is_pruned(gm, s)]
        for site in todo:
            shape, path = shape_of(site.node), f"{COMPRESSION}.{site.name}_pruner"
            insert_after(gm, tail(gm, site.node), path, Pruner(shape, shape, self.rules[site.name]))
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a weight with a rule can be read past its pruner."""
        for site in self._sites(gm):
            if not is_pruned(gm, site):
                raise PassError(f"weight '{site.name}' has users besides its pruner: {list(site.node.users)}")

    def _sites(self, gm: GraphModule) -> list[Site]:
        return [s for s in find_sites(gm) if s.kind == "weight" and s.name in self.rules]


def is_pruned(gm: GraphModule, site: Site) -> bool:
    """Whether everything reads a tensor through a pruner."""
    node = site.node
    while len(node.users) == 1 and isinstance(
        module := module_of(gm, node := next(iter(node.users))), Pruner | Quantizer
    ):
        if isinstance(module, Pruner):
            return True
    return False


def refuse_unknown(rules: Mapping[str, object], known: list[str], kind: str) -> None:
    """Raise PassError if `rules` names something that is not `known`."""
    there = set(known)
    for name in rules:
        if name not in there:
            raise PassError(f"no {kind} '{name}'; the graph has {known}")
