"""The notation and the file text: what they read, what they write, and where they point when they cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import short_rules

from fxcompress.errors import NotationError, SpecError
from fxcompress.notation import (
    is_later,
    looks_like_notation,
    parse_notation,
    read_data,
    read_time,
    to_item,
    to_notation,
    to_yaml,
)


def message(text: str) -> str:
    with pytest.raises(NotationError) as caught:
        parse_notation(text)
    return str(caught.value)


def test_reads_items_in_the_order_of_the_arrows() -> None:
    assert parse_notation("P0.5(w,f)@40%..64.5% -> Q8(w)@920") == [
        {"op": "prune", "target": ["weight", "activation"], "sparsity": 0.5, "start": "40%", "end": "64.5%"},
        {"op": "quantize", "target": "weight", "bits": 8, "start": 920},
    ]


def test_spaces_unicode_arrow_and_target_order_are_free() -> None:
    spaced = parse_notation(" P .5 ( f , w ) @ 37.5 %\n.. 60%\t→ Q8(f) ")
    assert spaced == [
        {"op": "prune", "target": ["activation", "weight"], "sparsity": 0.5, "start": "37.5%", "end": "60%"},
        {"op": "quantize", "target": "activation", "bits": 8},
    ]


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("", 1, "expected P (prune), or Q (quantize); found the end"),
        ("P0.5(w) ->  ", 11, "expected P (prune), or Q (quantize); found the end"),
        ("p0.5(w)", 1, "found 'p0'"),
        ("P(w)", 2, "expected a sparsity such as 0.5; found '('"),
        ("Q(w)", 2, "expected a whole number of bits such as 8; found '('"),
        ("Q8.5(w)", 3, "expected '(' and the targets; found '.'"),
        ("Q8[w]", 3, "expected '(' and the targets; found '['"),
        ("P0.5(weight)", 6, "expected w (weights), or f (features, that is activations); found 'weight'"),
        ("P0.5(w", 7, "expected ',', or ')'; found the end"),
        ("P0.5(w) Q8(w)", 9, "expected '@' and a time, or '->' and another item, or the end; found 'Q8'"),
        ("P0.5(w) - > Q8(w)", 9, "expected '@' and a time, or '->' and another item, or the end; found '-'"),
        ("P0.5(w)@soon", 9, "expected a time (40%, 115ep or a whole step such as 4000); found 'soon'"),
        ("P0.5(w)@4.5", 10, "expected '..' and the time it ends, or '->' and another item, or the end; found '.'"),
        ("Q8(w)@60%..70%", 10, "found '..'; only a prune item may have an end"),
    ],
)
def test_points_at_the_character_and_says_what_belongs_there(text: str, column: int, why: str) -> None:
    first, shown, caret, example = message(text).split("\n")
    assert first.startswith(f"notation, column {column}: ")
    assert first.endswith(why)
    assert shown == f"    {text}"
    assert caret.index("^") - 4 == column - 1
    assert example.startswith("for example: P0.5(w,f)@40%..64% -> Q8")


def test_text_of_several_lines_is_shown_in_one() -> None:
    _, shown, caret, _ = message("P0.5(w)\n-> X").split("\n")
    assert shown == "    P0.5(w) -> X"
    assert caret == " " * (4 + 11) + "^"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("P0.5(w)@60% -> Q4(f) -> Q8(w)@ 40%", "'Q8(w)@40%' starts at 40%, before 'P0.5(w)@60%', which starts at 60%"),
        ("Q8(w)@9 -> P0.5(w)@50% -> Q8(f)@8", "'Q8(f)@8' starts at 8, before 'Q8(w)@9', which starts at 9"),
        ("P0.5(w)@10% -> Q8(w)@9.5%", "'Q8(w)@9.5%' starts at 9.5%, before 'P0.5(w)@10%', which starts at 10%"),
    ],
)
def test_times_against_the_arrows_are_refused(text: str, why: str) -> None:
    assert f": {why}; swap them or move a time" in message(text).split("\n")[0]


def test_equal_times_and_mixed_units_are_left_to_the_plan() -> None:
    assert len(parse_notation("P0.5(w)@60% -> Q8(w)@60% -> Q4(f)@5")) == 3


@given(st.lists(short_rules(), min_size=1, max_size=4))
def test_what_it_writes_it_reads(rules: list[object]) -> None:
    dicts = [rule.to_dict() for rule in rules]  # type: ignore[attr-defined]
    text = to_notation(dicts, any_units=True)
    if text is not None:
        assert parse_notation(text) == dicts


def test_writes_shortest_numbers() -> None:
    assert (
        to_notation(parse_notation("P1.0(w) -> P0(w,f) -> P.125(f) -> Q8(w)"))
        == "P1(w) -> P0(w,f) -> P0.125(f) -> Q8(w)"
    )


@pytest.mark.parametrize(
    "rules",
    [
        [{"op": "quantize", "target": "weight", "bits": 8, "range": "mse"}],
        [{"op": "quantize", "target": "bias", "bits": 8}],
        [{"op": "prune", "target": "weight", "sparsity": True}],
        [{"op": "prune", "target": "weight", "sparsity": 0.5, "end": 8}],
        [{"op": "prune", "target": "weight", "sparsity": 0.5, "start": 0.5}],
        parse_notation("Q8(w)@40%") + parse_notation("Q8(f)@30%"),
    ],
)
def test_does_not_write_what_it_cannot_say(rules: list[dict[str, object]]) -> None:
    assert to_notation(rules) is None


def test_mixed_units_are_written_only_when_asked() -> None:
    rules = parse_notation("Q8(w)@40% -> Q8(f)@3000")
    assert to_notation(rules) is None
    assert to_notation(rules, any_units=True) == "Q8(w)@40% -> Q8(f)@3000"


def test_an_item_out_of_range_is_still_written_for_messages() -> None:
    assert to_item({"op": "quantize", "target": "weight", "bits": 99}) == "Q99(w)"


@pytest.mark.parametrize("text", ["P0.5(w)", " q8(f)", "P .5(w)", "P(w)", "weights -> Q8", "w → f"])
def test_looks_like_notation(text: str) -> None:
    assert looks_like_notation(text)


@pytest.mark.parametrize("text", ["rules: [{name: 'a->b'}]", "Prune: 1", "plan.yaml", "- op: prune", ""])
def test_looks_like_yaml(text: str) -> None:
    assert not looks_like_notation(text)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (0, 0),
        (4000, 4000),
        ("40%", "40%"),
        (" 040.50 %", "40.5%"),
        ("0.0%", "0%"),
        ("100.0%", "100%"),
        ("7.05%", "7.05%"),
    ],
)
def test_times_come_in_their_shortest_form(written: object, read: object) -> None:
    assert read_time(written) == read


@pytest.mark.parametrize(
    ("time", "fix"),
    [
        ("40", "write 40 without quotes for a step, or '40%'"),
        (0.4, "write '40%' for a share"),
        (40.0, "write a whole step such as 4000"),
        (True, "write a whole step"),
        (-1, "write a whole step"),
        ("-1%", "write a whole step"),
        ("4.5", "write a whole step"),
        ("100.5%", "from '0%' to '100%'"),
        ("101%", "from '0%' to '100%'"),
        ("٤٠%", "write a whole step"),
        (float("nan"), "write a whole step"),
    ],
)
def test_other_times_are_refused_with_a_fix(time: object, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        read_time(time)


def test_only_times_of_one_unit_are_compared() -> None:
    assert is_later("9.5%", "9%")
    assert is_later(10, 9)
    assert not is_later("9%", "10%")
    assert not is_later("90%", 10)
    assert not is_later(90, "10%")


def test_yaml_has_one_rule_a_line() -> None:
    assert to_yaml(parse_notation("P0.5(w,f)@40% -> Q8(w)")) == (
        "rules:\n"
        "  - {op: prune, target: [weight, activation], sparsity: 0.5, start: 40%}\n"
        "  - {op: quantize, target: weight, bits: 8}"
    )


@pytest.mark.parametrize(
    ("text", "form", "why"),
    [
        ("rules:\n  - {op: }}", "yaml", r"the YAML does not parse: .* \(at line 2, column 11\)"),
        ("a: 1\na: 2", "yaml", r"key 'a' is given twice \(at line 2, column 1\)"),
        ("a: \x01", "yaml", "the YAML does not parse: .*special characters are not allowed"),
        ("a: !!python/object:os.system x", "yaml", "could not determine a constructor"),
        ('{"a": 1,\n "b" 2}', "json", "the JSON does not parse: .* line 2 column 6"),
        ('{"a": 1, "a": 2}', "json", "key 'a' is given twice"),
        ("a = 1\nb 2", "toml", r"the TOML does not parse: .* \(at line 2, column 3\)"),
        ("a = 1\na = 2", "toml", "the TOML does not parse"),
        ("[" * 100_000, "json", "the JSON does not parse"),
    ],
)
def test_text_that_does_not_parse_says_where(text: str, form: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        read_data(text, form)
