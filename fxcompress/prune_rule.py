"""The rule that prunes: how much, in which pattern, by which criterion, along which ramp.

What each choice means, and where it comes from, is said in docs/pruning.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from fxcompress.criteria import load_criterion, name_of
from fxcompress.fields import Count, Share, Time
from fxcompress.notation import is_later
from fxcompress.patterns import CHANNEL, UNSTRUCTURED, Blocks, Grouped, read_pattern
from fxcompress.rule import Rule

_CRITERION_TEXT = "'magnitude', 'gradient', 'movement', 'random', 'zeros', a function or its 'module:name'"
Criterion = Annotated[
    Any,
    BeforeValidator(load_criterion),
    PlainSerializer(name_of),
    WithJsonSchema({"type": "string"}),
]
_PATTERN_TEXT = "'unstructured', 'channel', N:M such as '2:4', or blocks such as '4x1'"
_RAMPS: dict[str, float] = {"linear": 1.0, "cubic": 3.0}


class Prune(Rule):
    """Set the least entries of weights or activations to zero, in one event or in a ramp of several."""

    model_config = ConfigDict(json_schema_extra={"required": ["op", "target"]})

    op: Literal["prune"] = Field("prune", description="'prune': the kind of rule")
    sparsity: Share | None = Field(
        None, description="a number from 0 to 1: the share of entries that are zero in the end; N:M patterns say it"
    )
    pattern: Annotated[str, BeforeValidator(read_pattern), WithJsonSchema({"type": "string"})] = Field(
        UNSTRUCTURED, description=f"{_PATTERN_TEXT}: which entries go together"
    )
    end: Time = Field(
        None,
        description="a step, a percentage such as 64% or epochs such as 20ep: when the last event of the ramp acts",
    )
    ramp: Literal["cubic", "linear", "polynomial", "one-shot"] = Field(
        "cubic", description="'cubic', 'linear', 'polynomial' or 'one-shot': how sparsity rises"
    )
    power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        3.0, description="a number above 0: the exponent of a polynomial ramp"
    )
    steps: Count = Field(4, description="a whole number, 1 or more: events of the ramp")
    interval: Count | None = Field(
        None, description="a whole number, 1 or more: optimizer steps between events, instead of 'end'"
    )
    until: Time = Field(
        None, description="a step, a percentage or epochs: the mask is chosen anew every 'interval' steps until then"
    )
    release: Time = Field(
        None, description="a step, a percentage or epochs: when the mask is lifted, for dense recovery"
    )
    rewind: Time = Field(
        None, description="a step, a percentage or epochs: weights go back to what they were then, once all is pruned"
    )
    sequence: Literal["together", "front-to-back"] = Field(
        "together", description="'together' or 'front-to-back': whether tensors ramp at once or one after another"
    )
    criterion: Criterion = Field("magnitude", description=f"{_CRITERION_TEXT}: what makes an entry small")
    scope: Literal["tensor", "global"] = Field(
        "tensor", description="'tensor' or 'global': whether each tensor reaches the sparsity, or all together"
    )
    floor: Share = Field(0.01, description="a number from 0 to 1: the share of each tensor that a global scope keeps")
    gradient: Literal["masked", "dense"] | None = Field(
        None, description="'masked' or 'dense': what masked weights get while the mask may still change"
    )
    composition: Literal["q(p(x))", "p(q(x))"] = Field(
        "q(p(x))", description="'q(p(x))' or 'p(q(x))': whether pruning acts on float or on quantized values"
    )
    sizes: Literal["same", "centre"] = Field(
        "same", description="'same' or 'centre': whether an activation's mask serves inputs of other sizes"
    )
    window: Count = Field(
        32, description="a whole number, 1 or more: training steps that are looked at before each event"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    @property
    def by_channel(self) -> bool:
        """Whether whole channels go."""
        return self.pattern == CHANNEL

    @property
    def needs_gradient(self) -> bool:
        """Whether the criterion looks at gradients."""
        return self.criterion in ("gradient", "movement")

    @property
    def is_dense(self) -> bool:
        """Whether masked weights get their gradient while the mask may still change."""
        return (self.gradient or ("dense" if self.criterion == "movement" else "masked")) == "dense"

    @property
    def share(self) -> float:
        """The sparsity in the end: what the rule says, or what its N:M pattern does; 0 where the weights tell."""
        pattern = Grouped.of(self.pattern)
        return pattern.sparsity if pattern else self.sparsity or 0.0

    def levels(self) -> tuple[float, ...]:
        """The sparsity after each event: s (1 - (1 - k/n)^p) for k = 1..n, `share` at last (p = 3: Zhu & Gupta
        2017)."""
        at_once = self.ramp == "one-shot" or self.criterion == "zeros" or Grouped.of(self.pattern) is not None
        n, power = 1 if at_once else self.steps, _RAMPS.get(self.ramp, self.power)
        return tuple(self.share * (1 - (1 - k / n) ** power) for k in range(1, n + 1))

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from self._contradictions_of_amount()
        yield from self._contradictions_of_times()
        yield from self._contradictions_of_targets()

    def _contradictions_of_amount(self) -> Iterator[tuple[str, str]]:
        grouped = Grouped.of(self.pattern)
        if grouped and self.sparsity not in (None, grouped.sparsity):
            yield (
                f"'sparsity' is {self.sparsity} with pattern {self.pattern!r}, which prunes {grouped.sparsity:g}",
                "drop it",
            )
        if self.criterion == "zeros" and (self.sparsity is not None or self.pattern != UNSTRUCTURED):
            yield "criterion 'zeros' keeps the zeros that weights have", "drop 'sparsity' and 'pattern'"
        if self.sparsity is None and not grouped and self.criterion != "zeros":
            yield "missing key 'sparsity'", "it must be a number from 0 to 1"
        if self.scope == "global" and (grouped or self.criterion == "zeros"):
            what = self.pattern if grouped else "zeros"
            yield f"'scope' is 'global' for {what!r}, which each tensor fulfils by itself", "drop it"
        if self.scope == "global" and self.share != 1 and self.share > 1 - self.floor:
            yield f"'sparsity' is {self.sparsity}, and 'floor' keeps {self.floor}", "lower one of them"

    def _contradictions_of_times(self) -> Iterator[tuple[str, str]]:
        if self.ramp == "one-shot" and self.steps not in (1, 4):
            yield f"'steps' is {self.steps} for a one-shot ramp", "it has one event: drop 'steps', or write ramp: cubic"
        if self.ramp != "polynomial" and self.power != 3.0:
            yield f"'power' is {self.power:g} for a {self.ramp} ramp", "drop it, or write ramp: polynomial"
        for key in ("end", "interval", "until", "release", "rewind"):
            if getattr(self, key) is not None and self.start is None:
                yield f"'{key}' is {getattr(self, key)!r} without a start", f"give 'start' too, or drop '{key}'"
        if self.end is not None and self.start is not None:
            yield from self._contradictions_of_end(self.start, self.end)
        if self.until is not None and self.interval is None:
            yield f"'until' is {self.until!r} without an interval", "give 'interval', the steps between two choices"
        if self.sequence == "front-to-back" and (self.start is None or self.end is None or self.until is not None):
            yield "'sequence' is 'front-to-back'", "give 'start' and 'end', which it shares out, and no 'until'"

    def _contradictions_of_end(self, start: int | str, end: int | str) -> Iterator[tuple[str, str]]:
        if len(self.levels()) == 1 and self.sequence == "together":
            yield f"'end' is {end!r} for a single event, which acts at its start", "drop 'end', or give more steps"
        elif is_later(start, end):
            yield f"'end' is {end!r}, before 'start' {start!r}", "swap them"
        if self.interval is not None and self.until is None:
            yield "'end' and 'interval' both say how long the ramp is", "drop one of them"

    def _contradictions_of_targets(self) -> Iterator[tuple[str, str]]:
        of_weights: tuple[tuple[str, object, bool], ...] = (
            ("criterion", self.criterion, self.needs_gradient or self.criterion == "zeros"),
            ("rewind", self.rewind, self.rewind is not None),
            ("gradient", self.gradient, self.gradient is not None),
            ("pattern", self.pattern, bool(Grouped.of(self.pattern) or Blocks.of(self.pattern))),
        )
        for key, value, is_set in of_weights:
            if is_set and self.target != ("weight",):
                yield (
                    f"'{key}' is {value!r} for activations, which have no such thing",
                    "target weights alone, or drop it",
                )
        if self.sizes == "centre" and (self.target != ("activation",) or self.by_channel):
            yield "'sizes' is 'centre'", "it is for single elements of activations; channels fit all sizes: drop it"
        if self.composition == "p(q(x))" and self.by_channel and "weight" in self.target:
            yield "'composition' is 'p(q(x))' for channels of weights, which go with their biases", "drop it"
