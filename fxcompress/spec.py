"""A spec: the rules that say what is pruned and quantized, where, how much and when.

    P0.5(w,f) -> Q8(w,f)                                        the notation, see `fxcompress.notation`
    rules: [{op: prune, target: weight, sparsity: 0.5}, ...]    the file form: YAML, TOML or JSON
    Spec(rules=[Prune(target="weight", sparsity=0.5), ...])     Python

All three make the same objects and are checked by the same code; whatever is wrong raises one `SpecError` with one line
for each problem. A field's description reads "what is allowed: what it does", and messages quote its first half.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from fxcompress.errors import SpecError
from fxcompress.notation import (
    is_later,
    looks_like_notation,
    parse_notation,
    read_data,
    read_time,
    to_flow,
    to_item,
    to_notation,
    to_yaml,
)

MAX_BITS = 8
_TARGETS = ("weight", "activation")
_NICKNAMES = {"w": "weight", "f": "activation"}
_FIRST_KEYS = ("op", "target", "sparsity", "bits", "start", "end")
_FILE_FORMS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
_RULE_FORM = "write a mapping such as {op: prune, target: weight, sparsity: 0.5}"
_FORMS = (
    "write rules as 'P0.5(w,f) -> Q8(w,f)', as a mapping with the key 'rules', "
    f"or give the path of a file ({', '.join(_FILE_FORMS)})"
)


class _Checked(BaseModel):
    """A frozen model whose problems are raised together as one `SpecError`.

    Subclasses show type checkers an open `__init__`, for validators take more than the fields' types say: a string for
    a tuple, a dict for a rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            made = handler(data)
        except ValidationError as error:
            problems = [_problem(cls, found) for found in error.errors()]
        else:
            problems = list(made._contradictions())
        if problems:
            where = (info.context or {}).get("where", "")
            raise SpecError("\n".join(f"{what}{where}; {fix}" if fix else what for what, fix in problems)) from None
        return made

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Problems between fields, each as what is wrong and how to mend it ("" where the first says all)."""
        yield from ()


def _problem(cls: type[BaseModel], error: Any) -> tuple[str, str]:
    """Say one pydantic error as what is wrong and how to mend it."""
    if error["type"] == "value_error":
        what, fix = error["ctx"]["error"].args
        return what, fix
    value, key = error["input"], error["loc"][0] if error["loc"] else None
    if error["type"] in ("extra_forbidden", "invalid_key"):
        known = f"known keys: {_list(sorted(cls.model_fields))}"
        return f"unknown key {_quote(key)}", _nearest(key, cls.model_fields) + known
    if key is None:
        return f"{_quote(value)} is not a {cls.__name__}", "write a mapping of its fields"
    allowed = (cls.model_fields[key].description or "").partition(":")[0]
    if error["type"] == "missing":
        return f"missing key '{key}'", f"it must be {allowed}"
    choices = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
    return (
        f"'{key}' is {_quote(value)}",
        f"{_nearest(value, choices)}it must be {allowed}{_as_number(value, error['type'])}",
    )


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _nearest(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def _as_number(value: object, kind: str) -> str:
    """The number someone meant by '0.5', '50%' or 8.0, as a fix; "" where the value is no such thing."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]{1,2})?)\s*(%?)\s*", str(value))
    if kind not in ("int_type", "float_type") or found is None or not isinstance(value, str | float):
        return ""
    number = float(found[1]) / (100 if found[2] else 1)
    if kind == "int_type" and not number.is_integer():
        return ""
    return f"; write {int(number) if number.is_integer() else number}{' without quotes' * isinstance(value, str)}"


def _tuple(value: object) -> object:
    """One string or a list of them, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _patterns(value: object, info: ValidationInfo) -> object:
    patterns = _tuple(value)
    if patterns is None or (
        isinstance(patterns, tuple) and patterns and all(isinstance(p, str) and p for p in patterns)
    ):
        return patterns
    raise ValueError(f"'{info.field_name}' is {_quote(value)}", "write a pattern such as 'layer3.*', or a list of them")


def _targets(value: object) -> object:
    named = _tuple(value)
    if not isinstance(named, tuple) or not named:
        raise ValueError(f"'target' is {_quote(value)}", "write weight, activation, or [weight, activation]")
    for name in named:
        if name not in _TARGETS:
            nearest = _nearest(_NICKNAMES.get(str(name), name), _TARGETS)
            raise ValueError(f"'target' has {_quote(name)}", f"{nearest}targets: {_list(_TARGETS)}")
    if len(set(named)) < len(named):
        raise ValueError(f"'target' is {_quote(value)}", "name each target once")
    return tuple(name for name in _TARGETS if name in named)


def _time(value: object, info: ValidationInfo) -> object:
    try:
        return value if value is None else read_time(value)
    except ValueError as error:
        raise ValueError(f"'{info.field_name}' is {_quote(value)}", str(error)) from None


def _match(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Mapping):
        context = {"where": f" in '{info.field_name}'{(info.context or {}).get('where', '')}"}
        try:
            return Match.model_validate(dict(value), context=context)
        except SpecError as error:
            raise ValueError(str(error), "") from None
    if value is None or isinstance(value, Match):
        return value
    raise ValueError(f"'{info.field_name}' is {_quote(value)}", "write a mapping such as {name: fc, type: Linear}")


def _one_or_list(value: tuple[str, ...] | None) -> object:
    return value if value is None else value[0] if len(value) == 1 else list(value)


_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_TARGET_NAMES = {"type": "string", "enum": list(_TARGETS)}
_TARGETS_SCHEMA = {"anyOf": [_TARGET_NAMES, {**_STRINGS, "items": _TARGET_NAMES, "uniqueItems": True}]}
_PATTERNS_SCHEMA = {"anyOf": [{"type": "string"}, _STRINGS, {"type": "null"}]}
_PERCENT = {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]+)?%$"}
_TIME_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, _PERCENT, {"type": "null"}]}

Target = Literal["weight", "activation"]
Targets = Annotated[tuple[Target, ...], BeforeValidator(_targets), WithJsonSchema(_TARGETS_SCHEMA)]
Patterns = Annotated[tuple[str, ...] | None, BeforeValidator(_patterns), WithJsonSchema(_PATTERNS_SCHEMA)]
Time = Annotated[int | str | None, BeforeValidator(_time), WithJsonSchema(_TIME_SCHEMA)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(lambda share: share + 0.0)]  # no -0.0
Count = Annotated[int, Field(ge=1)]
Bits = Annotated[int, Field(ge=2, le=MAX_BITS)]


class Match(_Checked):
    """Shell patterns (case matters) for names and types; every field that is set must match.

    Each field takes one pattern or a list of them, of which any may match.
    """

    type: Patterns = Field(None, description="a pattern or a list: types of modules, such as Conv2d")
    name: Patterns = Field(None, description="a pattern or a list: paths of modules or tensors, such as 'layer3.*'")

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    _plain = field_serializer("type", "name")(_one_or_list)

    def matches(self, names: Iterable[str], types: Iterable[str]) -> bool:
        """Whether every field that is set matches one of the names, or one of the types."""
        return _any_matches(self.name, names) and _any_matches(self.type, types)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if not self.type and not self.name:
            yield "an empty match", "give 'type', 'name' or both; leave the match out to match everything"


def _any_matches(patterns: tuple[str, ...] | None, texts: Iterable[str]) -> bool:
    return patterns is None or any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)


class Rule(_Checked):
    """What every rule says: which tensors, and from when on. `str(rule)` is its notation where that can say it."""

    target: Targets = Field(description="weight, activation or both: the tensors the rule acts on")
    start: Time = Field(
        None, description="a step or a percentage such as 40%: when it starts; by default its place in the list decides"
    )
    match: Annotated[Match | None, BeforeValidator(_match)] = Field(
        None, description="a mapping with type, name or both: only tensors that match are taken"
    )
    exclude: Annotated[Match | None, BeforeValidator(_match)] = Field(
        None, description="a mapping with type, name or both: tensors that match are left alone"
    )

    _plain = field_serializer("target")(_one_or_list)

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
        raise SpecError(f"rule {number} is {_quote(item)}; {_RULE_FORM}")
    fields, text = dict(item), to_item(item)
    where = f" in rule {number} " + (f"'{text}'" if text else _quote(fields))
    op = fields.get("op")
    if not isinstance(op, str) or op not in _OPS:
        what = f"'op' is {_quote(op)}" if "op" in fields else "missing key 'op'"
        raise SpecError(f"{what}{where}; {_nearest(op, _OPS)}it must be 'prune' or 'quantize'")
    return _OPS[op].model_validate(fields, context={"where": where})


def _rules(value: object) -> tuple[Prune | Quantize, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"'rules' is {_quote(value)}", "write a list of at least one rule")
    made, problems = [], []
    for number, item in enumerate(value, start=1):
        try:
            made.append(_rule(item, number))
        except SpecError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems), "")
    return tuple(made)


class Spec(_Checked):
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
            raise SpecError(f"a spec is not {_quote(data)}; {_FORMS}")
        return cls.model_validate(dict(data))
