"""A spec: the rules that say what is pruned and quantized, where, how much and when.

    P0.5(w,f) -> Q8(w,f)                                        the notation, see `fxcompress.notation`
    rules: [{op: prune, target: weight, sparsity: 0.5}, ...]    the file form: YAML, TOML or JSON
    Spec(rules=[Prune(target="weight", sparsity=0.5), ...])     Python

All three make the same objects and are checked by the same code; whatever is wrong raises one `SpecError` with one line
for each problem. A field's description reads "what is allowed: what it does", and messages quote its first half.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, field_serializer

from fxcompress.errors import SpecError
from fxcompress.fields import (
    MAX_BITS,
    Bits,
    Checked,
    Count,
    Match,
    Share,
    Targets,
    Time,
    nearest,
    one_or_list,
    quote,
    read_match,
)
from fxcompress.notation import (
    is_later,
    looks_like_notation,
    parse_notation,
    read_data,
    to_flow,
    to_item,
    to_notation,
    to_yaml,
)

_FIRST_KEYS = ("op", "target", "sparsity", "bits", "start", "end")
_FILE_FORMS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
_RULE_FORM = "write a mapping such as {op: prune, target: weight, sparsity: 0.5}"
_FORMS = (
    "write rules as 'P0.5(w,f) -> Q8(w,f)', as a mapping with the key 'rules', "
    f"or give the path of a file ({', '.join(_FILE_FORMS)})"
)


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
    pattern: Literal["unstructured"] = Field("unstructured", description="'unstructured': which entries go together")
    end: Time = Field(None, description="a step or a percentage such as 64%: when the last event of the ramp acts")
    ramp: Literal["cubic", "one-shot"] = Field("cubic", description="'cubic' or 'one-shot': how sparsity rises")
    steps: Count = Field(4, description="a whole number, 1 or more: events of the ramp")
    criterion: Literal["magnitude"] = Field("magnitude", description="'magnitude': what makes an entry small")
    window: Count = Field(
        32, description="a whole number, 1 or more: training steps whose activations are looked at before each event"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

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
    scale: Literal["float", "power-of-two"] = Field("float", description="'float' or 'power-of-two': allowed scales")
    range: Literal["min-max", "mse"] = Field("min-max", description="'min-max' or 'mse': how the scale is chosen")
    window: Count = Field(32, description="a whole number, 1 or more: training steps observed before the event")
    first_last_bits: Bits = Field(
        8, description=f"a whole number from 2 to {MAX_BITS}: at least this width in the first and last layers"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    def bits_for(self, is_edge: bool) -> int:
        """The width in a layer: at least `first_last_bits` in the first and last ones (`is_edge`)."""
        return max(self.bits, self.first_last_bits) if is_edge else self.bits

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.per_channel and "weight" not in self.target:
            yield "'per_channel' is True for activations, which have one scale a tensor", "drop it, or target weights"


_OPS: dict[str, type[Prune | Quantize]] = {"prune": Prune, "quantize": Quantize}


def _rule(item: object, number: int) -> Prune | Quantize:
    if isinstance(item, Prune | Quantize):
        return item
    if not isinstance(item, Mapping):
        raise SpecError(f"rule {number} is {quote(item)}; {_RULE_FORM}")
    fields, text = dict(item), to_item(item)
    where = f" in rule {number} " + (f"'{text}'" if text else quote(fields))
    op = fields.get("op")
    if not isinstance(op, str) or op not in _OPS:
        what = f"'op' is {quote(op)}" if "op" in fields else "missing key 'op'"
        raise SpecError(f"{what}{where}; {nearest(op, _OPS)}it must be 'prune' or 'quantize'")
    return _OPS[op].model_validate(fields, context={"where": where})


def _rules(value: object) -> tuple[Prune | Quantize, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"'rules' is {quote(value)}", "write a list of at least one rule")
    made, problems = [], []
    for number, item in enumerate(value, start=1):
        try:
            made.append(_rule(item, number))
        except SpecError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems), "")
    return tuple(made)


class Spec(Checked):
    """A list of rules in time order: rules without a start act in the order in which they stand.

    >>> Spec.parse("P0.5(w,f) -> Q8(w,f)").rules[1].bits
    8
    """

    model_config = ConfigDict(json_schema_extra={"required": ["rules"]})

    rules: Annotated[
        tuple[Annotated[Prune | Quantize, Field(discriminator="op")], ...], BeforeValidator(_rules), Field(min_length=1)
    ] = Field(description="a list of at least one rule: what is done, in time order")
    version: Literal[1] = Field(1, description="1: the version of this form")
    _from_arrows: bool = PrivateAttr(default=False)

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    @property
    def from_arrows(self) -> bool:
        """Whether the rules were read from notation, whose arrows their explicit times must not contradict."""
        return self._from_arrows

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read notation or YAML. Text is notation if it starts with P or Q and a number or "(", or has "->" and no ":".

        Raises `NotationError` or another `SpecError`.
        """
        if not looks_like_notation(text):
            return cls._of_data(read_data(text, "yaml"))
        spec = cls(rules=parse_notation(text))
        spec._from_arrows = True
        return spec

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a .yaml, .yml, .toml or .json file (UTF-8). Raises `SpecError` naming the file."""
        form = _FILE_FORMS.get(Path(path).suffix.lower())
        if form is None:
            raise SpecError(f"'{path}' is not a spec file; its name must end in {', '.join(_FILE_FORMS)}")
        try:
            return cls._of_data(read_data(Path(path).read_text(encoding="utf-8-sig"), form))
        except OSError as error:
            raise SpecError(f"cannot read '{path}': {error.strerror}; check the path") from None
        except UnicodeDecodeError as error:
            raise SpecError(f"cannot read '{path}': byte {error.start} is not UTF-8; save it as UTF-8 text") from None
        except SpecError as error:
            raise SpecError(f"in file '{path}':\n{error}") from None

    @classmethod
    def of(cls, value: object) -> Self:
        """Make a spec of a spec, a dict, a rule, a list of rules, a path, or a string: notation, YAML or a path.

        A string is a path if it is one line without ": " that ends like a spec file or is the path of a file.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Rule | list | tuple):
            return cls(rules=(value,) if isinstance(value, Rule) else value)
        if isinstance(value, os.PathLike):
            return cls.load(value)
        if not isinstance(value, str):
            return cls._of_data(value)
        is_file = Path(value).suffix.lower() in _FILE_FORMS or (
            not looks_like_notation(value) and os.path.isfile(value)
        )
        return cls.load(value) if is_file and "\n" not in value and ": " not in value else cls.parse(value)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of the file form, for editors."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data, without what is at its default; `Spec.of` reads it back."""
        return {"rules": [rule.to_dict() for rule in self.rules]}

    def __str__(self) -> str:
        rules = self.to_dict()["rules"]
        return to_notation(rules, any_units=self.from_arrows) or to_yaml(rules)

    def __eq__(self, other: object) -> bool:
        return self.rules == other.rules if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.rules)

    @classmethod
    def _of_data(cls, data: object) -> Self:
        if not isinstance(data, Mapping):
            raise SpecError(f"a spec is not {quote(data)}; {_FORMS}")
        return cls.model_validate(dict(data))
