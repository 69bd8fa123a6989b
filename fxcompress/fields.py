"""How a spec's fields are read and checked: the base of its models, their field types, and problems as one clear
error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from fxcompress.errors import SpecError
from fxcompress.notation import read_time

MAX_BITS = 16
_TARGETS = ("weight", "activation")
_NICKNAMES = {"w": "weight", "f": "activation"}


class Checked(BaseModel):
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
        return f"unknown key {quote(key)}", nearest(key, cls.model_fields) + known
    if key is None:
        return f"{quote(value)} is not a {cls.__name__}", "write a mapping of its fields"
    allowed = (cls.model_fields[key].description or "").partition(": ")[0]
    if error["type"] == "missing":
        return f"missing key '{key}'", f"it must be {allowed}"
    choices = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
    return (
        f"'{key}' is {quote(value)}",
        f"{nearest(value, choices)}it must be {allowed}{_as_number(value, error['type'])}",
    )


def quote(value: object) -> str:
    """A value as messages quote it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name that was probably meant, as a question; "" where none is close."""
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
    raise ValueError(f"'{info.field_name}' is {quote(value)}", "write a pattern such as 'layer3.*', or a list of them")


def _targets(value: object) -> object:
    named = _tuple(value)
    if not isinstance(named, tuple) or not named:
        raise ValueError(f"'target' is {quote(value)}", "write weight, activation, or [weight, activation]")
    for name in named:
        if name not in _TARGETS:
            closest = nearest(_NICKNAMES.get(str(name), name), _TARGETS)
            raise ValueError(f"'target' has {quote(name)}", f"{closest}targets: {_list(_TARGETS)}")
    if len(set(named)) < len(named):
        raise ValueError(f"'target' is {quote(value)}", "name each target once")
    return tuple(name for name in _TARGETS if name in named)


def _time(value: object, info: ValidationInfo) -> object:
    try:
        return value if value is None else read_time(value)
    except ValueError as error:
        raise ValueError(f"'{info.field_name}' is {quote(value)}", str(error)) from None


def one_or_list(value: tuple[str, ...] | None) -> object:
    """A tuple of one as its element, else as a list."""
    return value if value is None else value[0] if len(value) == 1 else list(value)


_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_TARGET_NAMES = {"type": "string", "enum": list(_TARGETS)}
_TARGETS_SCHEMA = {"anyOf": [_TARGET_NAMES, {**_STRINGS, "items": _TARGET_NAMES, "uniqueItems": True}]}
_PATTERNS_SCHEMA = {"anyOf": [{"type": "string"}, _STRINGS, {"type": "null"}]}
_PERCENT = {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]+)?%$"}
_EPOCHS = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ep|epochs?)$"}
_TIME_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, _PERCENT, _EPOCHS, {"type": "null"}]}

Target = Literal["weight", "activation"]
Targets = Annotated[tuple[Target, ...], BeforeValidator(_targets), WithJsonSchema(_TARGETS_SCHEMA)]
Patterns = Annotated[tuple[str, ...] | None, BeforeValidator(_patterns), WithJsonSchema(_PATTERNS_SCHEMA)]
Time = Annotated[int | str | None, BeforeValidator(_time), WithJsonSchema(_TIME_SCHEMA)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(lambda share: share + 0.0)]  # no -0.0
Count = Annotated[int, Field(ge=1)]
Bits = Annotated[int, Field(ge=2, le=MAX_BITS)]


def read_range(value: object) -> object:
    """A range by name, or a pair of quantiles from {quantile: [low, high]}."""
    if isinstance(value, str) and value in RANGES:
        return value
    shares = value.get("quantile") if isinstance(value, Mapping) and len(value) == 1 else value
    if isinstance(shares, list | tuple) and len(shares) == 2:
        low, high = shares
        are_numbers = all(isinstance(q, int | float) and not isinstance(q, bool) for q in shares)
        if are_numbers and 0 <= low < high <= 1:
            return float(low), float(high)
    close = nearest(value, RANGES) if isinstance(value, str) else ""
    raise ValueError(
        f"'range' is {quote(value)}", f"{close}it must be {RANGE_TEXT}, such as {{quantile: [0.0001, 0.9999]}}"
    )


RANGES = ("min-max", "moving-average", "mse", "entropy")
RANGE_TEXT = "'min-max', 'moving-average', 'mse', 'entropy' or a quantile of two shares"
_SHARES = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 2, "maxItems": 2}
_QUANTILE = {
    "type": "object", "properties": {"quantile": _SHARES}, "required": ["quantile"], "additionalProperties": False,
}  # fmt: skip
_RANGE_SCHEMA = {"anyOf": [{"type": "string", "enum": list(RANGES)}, _QUANTILE]}
Range = Annotated[str | tuple[float, float], BeforeValidator(read_range), WithJsonSchema(_RANGE_SCHEMA)]


class Match(Checked):
    """Shell patterns (case matters) for names and types; every field that is set must match.

    Each field takes one pattern or a list of them, of which any may match.
    """

    type: Patterns = Field(None, description="a pattern or a list: types of modules, such as Conv2d")
    name: Patterns = Field(None, description="a pattern or a list: paths of modules or tensors, such as 'layer3.*'")

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    _plain = field_serializer("type", "name")(one_or_list)

    def matches(self, names: Iterable[str], types: Iterable[str]) -> bool:
        """Whether every field that is set matches one of the names, or one of the types."""
        return _any_matches(self.name, names) and _any_matches(self.type, types)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if not self.type and not self.name:
            yield "an empty match", "give 'type', 'name' or both; leave the match out to match everything"


def _any_matches(patterns: tuple[str, ...] | None, texts: Iterable[str]) -> bool:
    return patterns is None or any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)


def read_match(value: object, info: ValidationInfo) -> object:
    """A `Match` from a mapping of its fields."""
    if isinstance(value, Mapping):
        context = {"where": f" in '{info.field_name}'{(info.context or {}).get('where', '')}"}
        try:
            return Match.model_validate(dict(value), context=context)
        except SpecError as error:
            raise ValueError(str(error), "") from None
    if value is None or isinstance(value, Match):
        return value
    raise ValueError(f"'{info.field_name}' is {quote(value)}", "write a mapping such as {name: fc, type: Linear}")
