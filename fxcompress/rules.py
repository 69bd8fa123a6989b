"""The rules of a spec: what is pruned or quantized, where, how much and when, each a frozen value that checks itself.

A field's description reads "what is allowed: what it does", and messages quote its first half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from fxcompress.fields import MAX_BITS, RANGE_TEXT, Bits, Count, Range
from fxcompress.prune_rule import Prune as Prune
from fxcompress.rule import Rule as Rule


class Quantize(Rule):
    """Round weights or activations to a grid of integers times a scale (arXiv 2110.08271)."""

    model_config = ConfigDict(json_schema_extra={"required": ["op", "target", "bits"]})

    op: Literal["quantize"] = Field("quantize", description="'quantize': the kind of rule")
    bits: Bits = Field(description=f"a whole number from 2 to {MAX_BITS}: the width of the integers")
    per_channel: bool | None = Field(
        None, description="true or false: one scale a channel; by default weights have it and activations do not"
    )
    symmetric: bool | None = Field(
        None, description="true or false: a grid without zero point; by default weights have it and activations do not"
    )
    signed: bool | None = Field(
        None,
        description="true or false: signed integers; by default weights have them, activations as the target wants",
    )
    grid: Literal["uniform", "binary", "ternary"] = Field(
        "uniform", description="'uniform', 'binary' or 'ternary': which integers; the last two for weights of 2 bits"
    )
    block: Annotated[int, Field(ge=2)] | None = Field(
        None, description="a whole number, 2 or more: one scale for so many weights of a linear layer's input axis"
    )
    scale: Literal["float", "power-of-two", "learned"] = Field(
        "float", description="'float', 'power-of-two' or 'learned': allowed scales, or trained ones from the event on"
    )
    range: Range = Field("min-max", description=f"{RANGE_TEXT}: how the scale is chosen")
    recalibrate: bool = Field(
        False, description="true or false: weights choose their scale anew at every training step after the event"
    )
    window: Count = Field(32, description="a whole number, 1 or more: training steps observed before the event")
    first_last_bits: Bits = Field(
        8, description=f"a whole number from 2 to {MAX_BITS}: at least this width in the first and last layers"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    def bits_for(self, is_edge: bool) -> int:
        """The width in a layer: at least `first_last_bits` in the first and last ones (`is_edge`)."""
        return max(self.bits, self.first_last_bits) if is_edge else self.bits

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain data: `op` and every field that is not at its default."""
        data = super().to_dict()
        if isinstance(self.range, tuple):
            data["range"] = {"quantile": [*self.range]}
        return data

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.per_channel and "weight" not in self.target:
            yield "'per_channel' is True for activations, which have one scale a tensor", "drop it, or target weights"
        for key, value in (("block", self.block), ("recalibrate", self.recalibrate or None)):
            if value is not None and self.target != ("weight",):
                yield (
                    f"'{key}' is {value} for activations, which have no such thing",
                    "drop it, or target weights alone",
                )
        if self.grid != "uniform":
            yield from self._grid_contradictions()
        if self.block is not None and self.per_channel is not None:
            yield "'block' and 'per_channel' both say which weights share a scale", "drop one of them"
        if self.recalibrate and self.scale == "learned":
            yield "'recalibrate' is True for a learned scale, which training changes itself", "drop one of them"

    def _grid_contradictions(self) -> Iterator[tuple[str, str]]:
        if self.target != ("weight",):
            yield f"'grid' is {self.grid!r} for activations", "target weights alone, or drop it"
        if self.bits != 2:
            yield f"'grid' is {self.grid!r} with {self.bits} bits", "write bits: 2, the width that stores it"
        if self.scale == "power-of-two" or self.range != "min-max":
            yield f"'grid' is {self.grid!r}, whose scale has the least squared error", "drop 'range' and 'scale'"
        if self.symmetric is False or self.signed is False:
            yield f"'grid' is {self.grid!r}, which is signed and symmetric", "drop 'signed' and 'symmetric'"
