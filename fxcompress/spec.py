"""A spec: the rules that say what is pruned and quantized, where, how much and when.

    P0.5(w,f) -> Q8(w,f)                                        the notation, see `fxcompress.notation`
    rules: [{op: prune, target: weight, sparsity: 0.5}, ...]    the file form: YAML, TOML or JSON
    Spec(rules=[Prune(target="weight", sparsity=0.5), ...])     Python

All three make the same objects and are checked by the same code; whatever is wrong raises one `SpecError` with one line
for each problem.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr

from fxcompress.errors import SpecError
from fxcompress.fields import Checked, nearest, quote
from fxcompress.notation import (
    looks_like_notation,
    parse_notation,
    read_data,
    to_item,
    to_notation,
    to_yaml,
)
from fxcompress.rules import Prune, Quantize, Rule

_FILE_FORMS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
_RULE_FORM = "write a mapping such as {op: prune, target: weight, sparsity: 0.5}"
_FORMS = (
    "write rules as 'P0.5(w,f) -> Q8(w,f)', as a mapping with the key 'rules', "
    f"or give the path of a file ({', '.join(_FILE_FORMS)})"
)


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
