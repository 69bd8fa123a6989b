"""The text forms of a spec as plain dicts of rule fields: the short notation, and YAML, TOML and JSON.

The notation is that of arXiv 2110.08271 with times added: ``P0.5(w,f)@40%..64% -> Q8(w,f)@92%``.

``P0.5(w,f)`` prunes weights ``w`` and features (activations) ``f`` to sparsity 0.5, ``Q8(w,f)`` quantizes both to
8 bits. ``@`` gives the time an item starts, in percent of training, in epochs (``@115ep``) or in optimizer steps; a
prune item may also say when it ends. Arrows give the time order, so a later item must not start before an earlier one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Hashable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import yaml
from lark import Lark, Token, Tree, UnexpectedInput

from fxcompress.errors import NotationError, SpecError

_GRAMMAR = r"""
    spec: _item (_ARROW _item)*
    _item: prune | quantize
    prune: "P" SPARSITY targets ["@" TIME [_TO TIME]]
    quantize: "Q" BITS targets ["@" TIME]
    targets: "(" TARGET ("," TARGET)* ")"

    SPARSITY: /([0-9]+(\.[0-9]+)?|\.[0-9]+)(e[+-]?[0-9]+)?/
    BITS: /[0-9]{1,18}/
    TIME: /[0-9]+(\.[0-9]+)?\s*(%|ep)|[0-9]{1,18}/
    TARGET: /[wf](?![a-z])/
    _TO: ".."
    _ARROW: "->" | "→"
    %ignore /\s+/
"""
_PARSER = Lark(_GRAMMAR, parser="lalr", start="spec", propagate_positions=True)

# Every terminal of the grammar in plain words, in the order they stand in an item.
_WORDS = {
    "P": "P (prune)",
    "Q": "Q (quantize)",
    "SPARSITY": "a sparsity such as 0.5",
    "BITS": "a whole number of bits such as 8",
    "LPAR": "'(' and the targets",
    "TARGET": "w (weights), or f (features, that is activations)",
    "COMMA": "','",
    "RPAR": "')'",
    "AT": "'@' and a time",
    "TIME": "a time (40%, 115ep or a whole step such as 4000)",
    "_TO": "'..' and the time it ends",
    "_ARROW": "'->' and another item",
    "$END": "the end",
}
_LETTERS = {"weight": "w", "activation": "f"}
_NAMES = {letter: name for name, letter in _LETTERS.items()}
_EXAMPLE = "P0.5(w,f)@40%..64% -> Q8(w,f)@92%"


def parse_notation(text: str) -> list[dict[str, object]]:
    """Read the notation into one dict of rule fields for each item, in the order of the arrows.

    Ranges (sparsity, bits, percentages) are left to the rules themselves. Raises `NotationError`, which points at the
    character, when the text does not parse or when the times of two items contradict the arrow between them.
    """
    try:
        items = [item for item in _PARSER.parse(text).children if isinstance(item, Tree)]
    except UnexpectedInput as error:
        at, expected = _place(error, text), _expected(error)
        found = re.match(r"\w+|\.\.|\S", text[at:])
        why = f"expected {expected}; found {repr(found[0]) if found else 'the end'}"
        hint = "; only a prune item may have an end" if found and found[0] == ".." else ""
        raise _error(text, at, why + hint) from None
    _check_order(text, items)
    return [_rule(item) for item in items]


def to_notation(rules: Iterable[Mapping[str, object]], *, any_units: bool = False) -> str | None:
    """Write dicts of rule fields (as `parse_notation` returns them) as notation, or return None if it cannot say them.

    It cannot say other fields than targets, amount and times, nor starts that contradict the arrows. Whether starts in
    several units do so is known only with the length of training, so they are written only with `any_units`.
    """
    rules = list(rules)
    items = [to_item(rule) for rule in rules]
    written = [item for item in items if item is not None]
    starts = [start for rule in rules if isinstance(start := rule.get("start"), int | str)]
    by_unit = [[_amount(start) for start in starts if _unit(start) == unit] for unit in {*map(_unit, starts)}]
    if len(written) < len(items) or any(times != sorted(times) for times in by_unit):
        return None
    return " -> ".join(written) if any_units or len(by_unit) < 2 else None


def to_item(rule: Mapping[str, object]) -> str | None:
    """Write one dict of rule fields as a notation item, or return None; values out of range are written as they are."""
    letter, amount_key = ("P", "sparsity") if rule.get("op") == "prune" else ("Q", "bits")
    if set(rule) - {"op", "target", amount_key, "start", "end"}:
        return None
    amount, times = _amount_text(rule.get(amount_key)), _times_text(rule.get("start"), rule.get("end"))
    target = rule.get("target")
    names = target if isinstance(target, list | tuple) else [target]
    letters = [_LETTERS.get(name, "") if isinstance(name, str) else "" for name in names]
    if amount is None or times is None or not all(letters):
        return None
    return f"{letter}{amount}({','.join(letters)}){times}"


def looks_like_notation(text: str) -> bool:
    """Whether text is to be read as notation: it starts with P or Q and a number or '(', or has an arrow and no ':'."""
    if re.match(r"\s*[PQ]\s*[0-9.(]", text, re.IGNORECASE):
        return True
    return ("->" in text or "→" in text) and ":" not in text


def read_time(value: object) -> int | str:
    """Check a time: a step comes back as it is, percent and epochs in their shortest form. Raises ValueError with the
    fix."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return value
    if isinstance(value, float) and 0 <= value <= 1:
        raise ValueError(f"write '{value * 100:g}%' for a share of training, or a whole number for a step")
    text = value.strip() if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,18})(\.[0-9]{1,18})?\s*(%|ep|epochs?|)", text)
    if found is None or (found[2] and not found[3]):
        raise ValueError("write a whole step such as 4000, a percentage of training such as '40%', or epochs: '115ep'")
    if not found[3]:
        raise ValueError(f"write {found[1]} without quotes for a step, or '{found[1]}%' for a share of training")
    whole, fraction = int(found[1]), (found[2] or "").rstrip("0").rstrip(".")
    if found[3] != "%":
        return f"{whole}{fraction}ep"
    if (whole, fraction) > (100, ""):
        raise ValueError("a percentage of training is from '0%' to '100%'")
    return f"{whole}{fraction}%"


def is_later(first: int | str, second: int | str) -> bool:
    """Whether the first of two times is certainly later; times of different units cannot be compared here."""
    return _unit(first) == _unit(second) and _amount(first) > _amount(second)


def to_yaml(rules: Iterable[Mapping[str, object]]) -> str:
    """Write dicts of rule fields as the YAML file form, one rule a line."""
    return "\n".join(["rules:", *(f"  - {to_flow(rule)}" for rule in rules)])


def to_flow(rule: Mapping[str, object]) -> str:
    """Write one dict of rule fields as YAML on one line."""
    return yaml.safe_dump(dict(rule), default_flow_style=True, sort_keys=False, width=10**9).strip()


def read_data(text: str, form: str) -> object:
    """Read YAML, TOML or JSON text (`form` says which) as plain data.

    Raises `SpecError` with line and column when the text does not parse or gives a key twice.
    """
    try:
        if form == "json":
            return json.loads(text, object_pairs_hook=_unique)
        return tomllib.loads(text) if form == "toml" else yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SpecError(f"the {form.upper()} does not parse: {error.problem}{place}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"the {form.upper()} does not parse: {' '.join(str(error).split())}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without keys given twice, and without its numbers in base 60: the pattern 2:4 is no 124."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", re.compile("[0-9]+:[0-9]+$")), *resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return data


def _rule(item: Tree[Token]) -> dict[str, object]:
    amount, targets, *times = item.children
    assert isinstance(amount, Token) and isinstance(targets, Tree)
    names = [_NAMES[str(letter)] for letter in targets.children]
    rule: dict[str, object] = {"op": str(item.data), "target": names[0] if len(names) == 1 else names}
    rule |= {"sparsity": float(amount)} if item.data == "prune" else {"bits": int(amount)}
    for key, time in zip(("start", "end"), times, strict=False):
        if time is not None:
            text = "".join(str(time).split())
            rule[key] = text if _unit(text) else int(text)
    return rule


def _amount_text(amount: object) -> str | None:
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        return None
    return str(int(amount)) if amount in (0, 1) else str(amount)


def _times_text(start: object, end: object) -> str | None:
    if start is None:
        return "" if end is None else None
    times = [start] if end is None else [start, end]
    return "@" + "..".join(map(str, times)) if all(isinstance(time, int | str) for time in times) else None


def _check_order(text: str, items: list[Tree[Token]]) -> None:
    """Refuse an item that starts before an earlier one; each unit is compared only with its own kind."""
    latest: dict[str, tuple[Token, Tree[Token]]] = {}
    for item in items:
        start = item.children[2]
        if not isinstance(start, Token):
            continue
        time, earlier = latest.get(_unit(start), (start, item))
        if _amount(start) < _amount(time):
            here, there = _source(text, item), _source(text, earlier)
            why = f"'{here}' starts at {start}, before '{there}', which starts at {time}; swap them or move a time"
            raise _error(text, start.start_pos or 0, why)
        latest[_unit(start)] = (start, item)


def _unit(time: int | str) -> str:
    """ "%", "ep", or "" for steps."""
    return str(time).lstrip("0123456789. ")


def _amount(time: int | str) -> Decimal:
    return Decimal(str(time).removesuffix(_unit(time)).strip())


def _source(text: str, item: Tree[Token]) -> str:
    return "".join(text[item.meta.start_pos : item.meta.end_pos].split())


def _place(error: UnexpectedInput, text: str) -> int:
    at_end = getattr(getattr(error, "token", None), "type", None) == "$END"
    return len(text.rstrip()) if at_end or error.pos_in_stream is None else error.pos_in_stream


def _expected(error: UnexpectedInput) -> str:
    names: set[str] = set()
    for source in ("accepts", "allowed", "expected"):
        names = names or set(getattr(error, source, None) or ())
    names |= {"$END"} if "_ARROW" in names else set()
    return ", or ".join(words for name, words in _WORDS.items() if name in names)


def _error(text: str, at: int, why: str) -> NotationError:
    line = "".join(" " if char.isspace() else char for char in text)
    return NotationError(f"notation, column {at + 1}: {why}\n    {line}\n    {' ' * at}^\nfor example: {_EXAMPLE}")
