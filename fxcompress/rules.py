"""The rules of a spec: what is pruned or quantized, where, how much and when, each a frozen value that checks itself.

A field's description reads "what is allowed: what it does", and messages quote its first half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_serializer

from fxcompress.fields import (
    MAX_BITS,
    RANGE_TEXT,
    Bits,
    Checked,
    Count,
    Match,
    Range,
    Share,
    Targets,
    Time,
    one_or_list,
    read_match,
)
from fxcompress.notation import is_later, to_flow, to_item

_FIRST_KEYS = ("op", "target", "sparsity", "bits", "start", "end")


class Rule(Checked):
    """What every rule says: which tensors, and from when on. `str(rule)` is its notation where that can say it."""

    target: Targets = Field(description="weight, activation or both: the tensors the rule acts on")
    start: Time = Field(
        None, description="a step or a percentage such as 40%: when it starts; by default its place in the list decides"
    )
    match: Annotated[Match | None, BeforeValidator(read_match)] = Field(
        None, description="a mapping with type, name or both: only tensors that match are taken"
    )
    exclude: Annotated[Match | None, BeforeValidator(read_match)] = Field(
        None, description="a mapping with type, name or both: tensors that match are left alone"
    )

    _plain = field_serializer("target")(one_or_list)

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain data: `op` and every field that is not at its default."""
        data = {"op": getattr(self, "op", None), **self.model_dump(exclude_defaults=True, exclude_none=True)}
        return {key: data[key] for key in (*_FIRST_KEYS, *data) if key in data}

    def __str__(self) -> str:
        return to_item(self.to_dict()) or to_flow(self.to_dict())


class Prune(Rule):
    """Set the smallest entries of weights or activations to zero, in one event or in a ramp of several."""

    model_config = ConfigDict(json_schema_extra={"required": ["op", "target", "sparsity"]})

    op: Literal["prune"] = Field("prune", description="'prune': the kind of rule")
    sparsity: Share = Field(description="a number from 0 to 1: the share of entries that are zero in the end")
    pattern: Literal["unstructured", "channel"] = Field(
        "unstructured", description="'unstructured' or 'channel': which entries go together"
    )
    end: Time = Field(None, description="a step or a percentage such as 64%: when the last event of the ramp acts")
    ramp: Literal["cubic", "one-shot"] = Field("cubic", description="'cubic' or 'one-shot': how sparsity rises")
    steps: Count = Field(4, description="a whole number, 1 or more: events of the ramp")
    criterion: Literal["magnitude"] = Field("magnitude", description="'magnitude': what makes an entry small")
    window: Count = Field(
        32, description="a whole number, 1 or more: training steps whose activations are looked at before each event"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    @property
    def by_channel(self) -> bool:
        """Whether whole channels go."""
        return self.pattern == "channel"

    def levels(self) -> tuple[float, ...]:
        """The sparsity after each event: s (1 - (1 - k/n)^3) for k = 1..n (Zhu & Gupta 2017), `sparsity` at last."""
        n = 1 if self.ramp == "one-shot" else self.steps
        return tuple(self.sparsity * (1 - (1 - k / n) ** 3) for k in range(1, n + 1))

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.ramp == "one-shot" and self.steps not in (1, 4):
            yield f"'steps' is {self.steps} for a one-shot ramp", "it has one event: drop 'steps', or write ramp: cubic"
        if self.end is None:
            return
        if self.start is None:
            yield f"'end' is {self.end!r} without a start", "give 'start' too, or drop 'end'"
        elif len(self.levels()) == 1:
            yield f"'end' is {self.end!r} for a single event, which acts at its start", "drop 'end', or give more steps"
        elif is_later(self.start, self.end):
            yield f"'end' is {self.end!r}, before 'start' {self.start!r}", "swap them"


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
