"""Quantize activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.graph import COMPRESSION, insert_after, module_of
from fxcompress.grid import Grid
from fxcompress.operators import SOFTMAXES, called
from fxcompress.passes.prune_weights import refuse_unknown
from fxcompress.quantizer import Plan, Quantizer
from fxcompress.rules import Quantize
from fxcompress.sites import Site, find_sites, tail
from fxcompress.targets import TARGETS, Target, activation_grid, calibration


@dataclass(frozen=True)
class QuantizeActivations:
    """Insert a quantizer after every activation that has a rule, behind its pruner.

    Before:  input %x
             %fc = linear(%x, %fc_weight, %fc_bias)
             output %fc
    After:   input %x
             %x_quantizer = compression.x_quantizer:Quantizer(%x)
             %fc = linear(%x_quantizer, %fc_weight, %fc_bias)
             %fc_quantizer = compression.fc_quantizer:Quantizer(%fc)
             output %fc_quantizer

    Requires: every name in `rules` is an activation that an integer kernel reads or writes.
    Ensures:  every activation with a rule passes one quantizer, whoever uses it.
    Leaves alone: activations already quantized.
    """

    name: ClassVar[str] = "quantize-activations"
    rules: Mapping[str, Quantize]
    target: Target = TARGETS["onnxruntime"]

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if a name is no activation that can be quantized."""
        refuse_unknown(
            self.rules, [s.name for s in find_sites(gm) if s.kind == "activation" and s.quantizable], "activation"
        )

    def rewrite(self, gm: GraphModule) -> bool:
        """Insert the quantizers."""
        todo = [s for s in self._sites(gm) if not _is_quantized(gm, s)]
        for site in todo:
            insert_after(gm, tail(gm, site.node), f"{COMPRESSION}.{site.name}_quantizer", self._quantizer(gm, site))
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if an activation with a rule passes no quantizer."""
        for site in self._sites(gm):
            if not _is_quantized(gm, site):
                raise PassError(f"activation '{site.name}' has users besides its quantizer: {list(site.node.users)}")

    def _sites(self, gm: GraphModule) -> list[Site]:
        return [s for s in find_sites(gm) if s.kind == "activation" and s.name in self.rules]

    def _quantizer(self, gm: GraphModule, site: Site) -> Quantizer:
        rule = self.rules[site.name]
        grid = activation_grid(rule, site.is_edge, self.target)
        if called(gm, site.node) in SOFTMAXES and not grid.symmetric:
            # Its values reach from 0 to 1, and ONNX Runtime's integer kernel is right on this grid alone.
            quantizer = Quantizer(Plan(Grid(grid.bits, False, False)))
            quantizer.fixed_scale = 2.0**-grid.bits
            return quantizer
        return Quantizer(Plan(grid, calibration(rule), learned=rule.scale == "learned"))


def _is_quantized(gm: GraphModule, site: Site) -> bool:
    return isinstance(module_of(gm, tail(gm, site.node)), Quantizer)
