"""Quantize weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.graph import COMPRESSION, insert_after, module_of
from fxcompress.operators import shape_of
from fxcompress.passes.prune_weights import refuse_unknown
from fxcompress.quantizer import Plan, Quantizer
from fxcompress.rules import Quantize
from fxcompress.sites import Site, find_sites, tail
from fxcompress.targets import TARGETS, Target, calibration, weight_grid


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
    target: Target = TARGETS["onnxruntime"]

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
        plan = Plan(
            weight_grid(rule, site.is_edge, self.target),
            calibration(rule),
            axis=site.axis if rule.per_channel is not False else None,
            block=rule.block,
            learned=rule.scale == "learned",
            recalibrates=rule.recalibrate,
        )
        return Quantizer(plan, shape_of(site.node))


def _is_quantized(gm: GraphModule, site: Site) -> bool:
    return isinstance(module_of(gm, tail(gm, site.node)), Quantizer)
