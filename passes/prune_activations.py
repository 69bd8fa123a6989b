"""Prune activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.graph import COMPRESSION, insert_after
from fxcompress.operators import shape_of
from fxcompress.passes.prune_weights import is_pruned, refuse_unknown
from fxcompress.pruner import Pruner
from fxcompress.rules import Prune
from fxcompress.sites import Site, find_sites, tail


@dataclass(frozen=True)
class PruneActivations:
    """Insert a pruner after every activation that has a rule.

    Its mask covers one sample, (C, H, W) or the channels of it, and stands behind batch norm and activation function, next
    to the quantizer.

    Before:  %relu = relu:ReLU(%fc1)
             %drop = drop:Dropout(%relu)
    After:   %relu = relu:ReLU(%fc1)
             %relu_pruner = compression.relu_pruner:Pruner(%relu)
             %drop = drop:Dropout(%relu_pruner)

    Requires: every name in `rules` is an activation at the end of a product's unit and no output of the model.
    Ensures:  an activation with a rule has one user, its pruner.
    Leaves alone: activations already pruned.
    """

    name: ClassVar[str] = "prune-activations"
    rules: Mapping[str, Prune]

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if a name is no activation that can be pruned."""
        refuse_unknown(
            self.rules, [s.name for s in find_sites(gm) if s.kind == "activation" and s.prunable], "activation"
        )

    def rewrite(self, gm: GraphModule) -> bool:
        """Insert the pruners."""
        todo = [s for s in self._sites(gm) if not is_pruned(gm, s)]
        for site in todo:
            rule, shape = self.rules[site.name], shape_of(site.node)[1:]
            mask = (shape[0], *(1 for _ in shape[1:])) if rule.by_channel else shape
            path = f"{COMPRESSION}.{site.name}_pruner"
            insert_after(gm, tail(gm, site.node), path, Pruner(mask, None, rule))
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if an activation with a rule can be read past its pruner."""
        for site in self._sites(gm):
            if not is_pruned(gm, site):
                raise PassError(f"activation '{site.name}' has users besides its pruner: {list(site.node.users)}")

    def _sites(self, gm: GraphModule) -> list[Site]:
        return [s for s in find_sites(gm) if s.kind == "activation" and s.name in self.rules]
