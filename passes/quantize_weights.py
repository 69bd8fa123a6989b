"""Quantize weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.graph import COMPRESSION, insert_after, module_of
from fxcompress.grid import Grid
from fxcompress.operators import shape_of
from fxcompress.passes.prune_weights import refuse_unknown
from fxcompress.quantizer import Quantizer
from fxcompress.sites import Site, find_sites, tail
from fxcompress.spec import Quantize


@dataclass(frozen=True)
class QuantizeWeights:
    """Insert a quantizer after every weight that has a rule, behind its pruner.

    Before:  %fc_weight = fc.weight
             %fc = linear(%x, %fc_weight, %fc_bias)
    After:   %fc_weight = fc.weight
             %fc_weight_quantizer = compression.fc.weight_quantizer:Quantizer(%fc_weight)
             %fc = linear(%x, %fc_weight_quantizer, %fc_bias)

    Requires: every name in `rules` is a weight of a product.
    Ensures:  every weight with a rule passes a quantizer.
    Leaves alone: biases; weights already quantized.
    """

    name: ClassVar[str] = "quantize-weights"
    rules: Mapping[str, Quantize]

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if a name is no weight."""
        refuse_unknown(self.rules, [s.name for s in find_sites(gm) if s.kind == "weight" and s.quantizable], "weight")

    def rewrite(self, gm: GraphModule) -> bool:
        """Insert the quantizers."""
        todo = [s for s in self._sites(gm) if not _is_quantized(gm, s)]
        for site in todo:
            insert_after(gm, tail(gm, site.node), f"{COMPRESSION}.{site.name}_quantizer", self._quantizer(site))
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a weight with a rule passes no quantizer."""
        for site in self._sites(gm):
            if not _is_quantized(gm, site):
                raise PassError(f"weight '{site.name}' has users besides its quantizer: {list(site.node.users)}")

    def _sites(self, gm: GraphModule) -> list[Site]:
        return [s for s in find_sites(gm) if s.kind == "weight" and s.name in self.rules]

    def _quantizer(self, site: Site) -> Quantizer:
        rule = self.rules[site.name]
        grid = Grid(rule.bits_for(site.is_edge), signed=True, symmetric=rule.symmetric is not False, narrow=True)
        axis = site.axis if rule.per_channel is not False else None
        channels = None if axis is None else shape_of(site.node)[axis]
        return Quantizer(grid, (rule.range, rule.scale), channels, axis)


def _is_quantized(gm: GraphModule, site: Site) -> bool:
    return isinstance(module_of(gm, tail(gm, site.node)), Quantizer)
