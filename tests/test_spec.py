"""Rules and specs: the three ways to make them, the ways to write them, and one clear error for what is wrong."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import MATCHES, long_prunes, prunes, quantizes, specs

from fxcompress.errors import FxCompressError, NotationError, SpecError
from fxcompress.fields import MAX_BITS, RANGE_TEXT, Match
from fxcompress.rules import Prune, Quantize
from fxcompress.spec import Spec

DESIGN_FILE = """
rules:
  - {op: prune, target: [weight, activation], sparsity: 0.5, start: 40%, end: 64%, ramp: cubic, steps: 4}
  - {op: quantize, target: weight, bits: 8, start: 92%, per_channel: true, scale: power-of-two, range: mse}
  - {op: prune, target: weight, sparsity: 0.5,
     match: {type: Conv2d, name: "layer3.*"}, exclude: {name: "*.downsample.*"}}
"""


def problems(make: Any, *args: Any, **fields: Any) -> list[str]:
    """The lines of the one SpecError that a call raises."""
    with pytest.raises(SpecError) as caught:
        make(*args, **fields)
    return str(caught.value).split("\n")


# Round trips.


@given(specs())
def test_text_and_plain_data_give_the_spec_back(spec: Spec) -> None:
    assert Spec.parse(str(spec)) == spec
    assert Spec.of(str(spec)) == spec
    assert Spec.of(spec.to_dict()) == spec
    assert Spec.of(json.loads(json.dumps(spec.to_dict()))) == spec
    assert Spec.of(list(spec.rules)) == spec
    assert hash(Spec.of(spec.to_dict())) == hash(spec)


@given(specs())
def test_writing_is_stable_and_copies_are_equal(spec: Spec) -> None:
    assert str(Spec.parse(str(spec))) == str(spec)
    assert copy.deepcopy(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(prunes() | long_prunes() | quantizes())
def test_plain_data_says_only_what_is_not_default(rule: Prune | Quantize) -> None:
    fields = rule.to_dict()
    assert list(fields)[:2] == ["op", "target"]
    required = {"op", "target", "sparsity" if isinstance(rule, Prune) else "bits"}
    defaults = {name: field.default for name, field in type(rule).model_fields.items()}
    assert all(name in required or value != defaults[name] for name, value in fields.items())
    assert type(rule)(**fields) == rule


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".YAML"])
def test_files_give_the_spec_back(tmp_path: Path, suffix: str) -> None:
    spec = Spec.parse(DESIGN_FILE)
    path = tmp_path / f"plan{suffix}"
    path.write_text(json.dumps(spec.to_dict()) if suffix == ".json" else str(spec), encoding="utf-8")
    assert Spec.load(path) == Spec.of(path) == Spec.of(str(path)) == spec


def test_toml_file_with_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('version = 1\n[[rules]]\nop = "quantize"\ntarget = "weight"\nbits = 8\n', encoding="utf-8-sig")
    assert str(Spec.load(path)) == "Q8(w)"


def test_the_file_of_the_design() -> None:
    prune, quantize, layer3 = Spec.parse(DESIGN_FILE).rules
    assert prune == Prune(sparsity=0.5, target=("weight", "activation"), start="40%", end="64%")
    assert quantize == Quantize(
        bits=8, target="weight", start="92%", per_channel=True, scale="power-of-two", range="mse"
    )
    assert layer3.match == Match(type="Conv2d", name="layer3.*")
    assert layer3.exclude == Match(name=["*.downsample.*"])


def test_notation_is_written_where_it_says_all_else_yaml() -> None:
    assert str(Spec.parse("P.5(f,w)@040.0%..64%→Q8(f)")) == "P0.5(w,f)@40%..64% -> Q8(f)"
    assert str(Spec(rules=[Quantize(bits=8, target="weight", range="mse")])) == (
        "rules:\n  - {op: quantize, target: weight, bits: 8, range: mse}"
    )
    assert str(Prune(sparsity=0.5, target="weight")) == "P0.5(w)"
    match = Match(type=["Conv2d"], name=["fc", "head"])
    assert str(Quantize(bits=4, target="weight", match=match, exclude={"name": "fc"})) == (
        "{op: quantize, target: weight, bits: 4, match: {type: Conv2d, name: [fc, head]}, exclude: {name: fc}}"
    )
    assert str(Prune(sparsity=0.5, target="weight", steps=2)) == "{op: prune, target: weight, sparsity: 0.5, steps: 2}"


def test_only_notation_has_arrows_and_they_do_not_count_in_equality() -> None:
    arrows = Spec.parse("Q8(w)@40% -> Q8(f)@3000")
    listed = Spec(rules=arrows.rules)
    assert arrows == listed
    assert hash(arrows) == hash(listed)
    assert (arrows.from_arrows, listed.from_arrows, pickle.loads(pickle.dumps(arrows)).from_arrows) == (
        True,
        False,
        True,
    )
    assert str(arrows) == "Q8(w)@40% -> Q8(f)@3000"
    assert Spec.parse(str(listed)) == listed
    assert not Spec.parse(str(listed)).from_arrows


def test_specs_differ_by_their_rules() -> None:
    assert Spec.parse("Q8(w)") != Spec.parse("Q7(w)")
    assert Spec.parse("Q8(w)") != "Q8(w)"


def test_n_of_m_needs_no_quotes_in_yaml() -> None:
    [rule] = Spec.parse("rules:\n  - {op: prune, target: weight, pattern: 2:4}").rules
    assert isinstance(rule, Prune)
    assert rule.pattern == "2:4"


# Making rules in Python.


def test_targets_are_put_in_order() -> None:
    assert Quantize(bits=8, target="weight").target == ("weight",)
    assert Prune(sparsity=1, target=["activation", "weight"]).target == ("weight", "activation")


def test_values_are_kept_plain() -> None:
    assert type(Prune(sparsity=1, target="weight").sparsity) is float
    assert str(Prune(sparsity=-0.0, target="weight").sparsity) == "0.0"
    assert Quantize(bits=8, target="weight", symmetric=False).symmetric is False
    assert Prune(sparsity=1, target="weight", ramp="one-shot", steps=1).levels() == (1.0,)


def test_defaults() -> None:
    prune, quantize = Spec.parse("P0.5(w) -> Q8(w)").rules
    assert isinstance(prune, Prune)
    assert (prune.pattern, prune.ramp, prune.steps, prune.window) == ("unstructured", "cubic", 4, 32)
    assert isinstance(quantize, Quantize)
    assert (quantize.per_channel, quantize.symmetric, quantize.scale) == (None, None, "float")
    assert (quantize.range, quantize.window, quantize.first_last_bits) == ("min-max", 32, 8)


def test_rules_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Quantize(bits=8, target="weight").bits = 4


def test_spec_of_a_spec_a_rule_and_a_tuple() -> None:
    rule = Quantize(bits=8, target="weight")
    spec = Spec(rules=[rule])
    assert Spec.of(spec) is spec
    assert Spec.of(rule) == Spec.of((rule,)) == spec


@pytest.mark.parametrize(("bits", "floor", "edge"), [(4, 8, 8), (8, 4, 8), (4, 4, 4), (2, 6, 6)])
def test_first_and_last_layers_keep_their_bits(bits: int, floor: int, edge: int) -> None:
    rule = Quantize(bits=bits, target="weight", first_last_bits=floor)
    assert (rule.bits_for(is_edge=True), rule.bits_for(is_edge=False)) == (edge, bits)


@pytest.mark.parametrize(("steps", "levels"), [(1, (0.8,)), (2, (0.7, 0.8)), (4, (0.4625, 0.7, 0.7875, 0.8))])
def test_cubic_levels(steps: int, levels: tuple[float, ...]) -> None:
    assert Prune(sparsity=0.8, target="weight", steps=steps).levels() == pytest.approx(levels)


@given(prunes())
def test_levels_rise_to_exactly_the_sparsity(rule: Prune) -> None:
    levels = rule.levels()
    assert list(levels) == sorted(levels)
    assert levels[-1] == rule.sparsity
    assert len(levels) == (1 if rule.ramp == "one-shot" else rule.steps)


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        (Match(type="Conv2d"), True),
        (Match(type="conv2d"), False),
        (Match(name="layer3.*"), True),
        (Match(name="layer3"), False),
        (Match(name=["fc", "*.conv1"]), True),
        (Match(name="layer3.*", type="Linear"), False),
        (Match(name="fc", type="Conv2d"), False),
        (Match(name="alias", type=["Linear", "Conv*"]), True),
    ],
)
def test_match(match: Match, matches: bool) -> None:
    assert match.matches(names=iter(["layer3.0.conv1", "alias"]), types=iter(["Conv2d"])) is matches


@given(MATCHES)
def test_nothing_matches_without_names_and_types(match: Match) -> None:
    assert not match.matches([], [])


# What is wrong is said once, in lines.


def test_errors_are_of_the_library_and_not_of_pydantic() -> None:
    with pytest.raises(SpecError) as caught:
        Prune(sparsity=2, target="weight")
    assert isinstance(caught.value, FxCompressError)
    assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"sparsity": 1.5}, "'sparsity' is 1.5; it must be a number from 0 to 1"),
        ({"sparsity": float("nan")}, "'sparsity' is nan; it must be a number from 0 to 1"),
        ({"sparsity": True}, "'sparsity' is True; it must be a number from 0 to 1"),
        ({"sparsity": "0.5"}, "'sparsity' is '0.5'; it must be a number from 0 to 1; write 0.5 without quotes"),
        ({"sparsity": "5e-1"}, "'sparsity' is '5e-1'; it must be a number from 0 to 1; write 0.5 without quotes"),
        ({"sparsity": "50%"}, "'sparsity' is '50%'; it must be a number from 0 to 1; write 0.5 without quotes"),
        ({"sparsity": "half"}, "'sparsity' is 'half'; it must be a number from 0 to 1"),
        ({"steps": 4.0}, "'steps' is 4.0; it must be a whole number, 1 or more; write 4"),
        ({"steps": 4.5}, "'steps' is 4.5; it must be a whole number, 1 or more"),
        ({"steps": 0}, "'steps' is 0; it must be a whole number, 1 or more"),
        ({"window": True}, "'window' is True; it must be a whole number, 1 or more"),
        (
            {"ramp": "cubik"},
            "'ramp' is 'cubik'; did you mean 'cubic'? it must be 'cubic', 'linear', 'polynomial' or 'one-shot'",
        ),
        (
            {"pattern": "x"},
            "'pattern' is 'x'; it must be 'unstructured', 'channel', N:M such as '2:4' (2 of 4 are kept), or blocks such as '4x1'",
        ),
        (
            {"criterion": None},
            "'criterion' is None; it must be 'magnitude', 'gradient', 'movement', 'random', 'zeros', a function or its 'module:name'",
        ),
        ({"op": "quantize"}, "'op' is 'quantize'; it must be 'prune'"),
        ({"start": 0.4}, "'start' is 0.4; write '40%' for a share of training, or a whole number for a step"),
        (
            {"start": 1, "end": "40"},
            "'end' is '40'; write 40 without quotes for a step, or '40%' for a share of training",
        ),
        ({"end": 9}, "'end' is 9 without a start; give 'start' too, or drop 'end'"),
        ({"start": 9, "end": 8}, "'end' is 8, before 'start' 9; swap them"),
        ({"start": "9.5%", "end": "9%"}, "'end' is '9%', before 'start' '9.5%'; swap them"),
        (
            {"start": 1, "end": 8, "steps": 1},
            "'end' is 8 for a single event, which acts at its start; drop 'end', or give more steps",
        ),
        (
            {"ramp": "one-shot", "steps": 3},
            "'steps' is 3 for a one-shot ramp; it has one event: drop 'steps', or write ramp: cubic",
        ),
        ({"target": "w"}, "'target' has 'w'; did you mean 'weight'? targets: 'weight', 'activation'"),
        (
            {"target": ["activations"]},
            "'target' has 'activations'; did you mean 'activation'? targets: 'weight', 'activation'",
        ),
        ({"target": ["weight", "weight"]}, "'target' is ['weight', 'weight']; name each target once"),
        ({"target": []}, "'target' is []; write weight, activation, or [weight, activation]"),
        ({"target": [3]}, "'target' has 3; targets: 'weight', 'activation'"),
        ({"match": "fc"}, "'match' is 'fc'; write a mapping such as {name: fc, type: Linear}"),
        ({"match": {"nam": "fc"}}, "unknown key 'nam' in 'match'; did you mean 'name'? known keys: 'name', 'type'"),
        ({"exclude": {"name": ""}}, "'name' is '' in 'exclude'; write a pattern such as 'layer3.*', or a list of them"),
    ],
)
def test_prune_says_what_is_wrong(fields: dict[str, object], line: str) -> None:
    assert problems(Prune, **({"target": "weight", "sparsity": 0.5} | fields)) == [line]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"bits": 8.0}, f"'bits' is 8.0; it must be a whole number from 2 to {MAX_BITS}; write 8"),
        ({"bits": "8"}, f"'bits' is '8'; it must be a whole number from 2 to {MAX_BITS}; write 8 without quotes"),
        ({"bits": 1}, f"'bits' is 1; it must be a whole number from 2 to {MAX_BITS}"),
        ({"bits": MAX_BITS + 1}, f"'bits' is {MAX_BITS + 1}; it must be a whole number from 2 to {MAX_BITS}"),
        ({"first_last_bits": 1}, f"'first_last_bits' is 1; it must be a whole number from 2 to {MAX_BITS}"),
        ({"per_channel": "yes"}, "'per_channel' is 'yes'; it must be true or false"),
        ({"symmetric": 1}, "'symmetric' is 1; it must be true or false"),
        (
            {"scale": "power_of_two"},
            "'scale' is 'power_of_two'; did you mean 'power-of-two'? it must be 'float', 'power-of-two' or 'learned'",
        ),
        (
            {"range": "minmax"},
            "'range' is 'minmax'; did you mean 'min-max'? it must be "
            + RANGE_TEXT
            + ", such as {quantile: [0.0001, 0.9999]}",
        ),
        (
            {"target": "activation", "per_channel": True},
            "'per_channel' is True for activations, which have one scale a tensor; drop it, or target weights",
        ),
    ],
)
def test_quantize_says_what_is_wrong(fields: dict[str, object], line: str) -> None:
    assert problems(Quantize, **({"target": "weight", "bits": 8} | fields)) == [line]


def test_missing_and_unknown_keys() -> None:
    missing, unknown = problems(Quantize, target="weight", bit=8)
    assert missing == f"missing key 'bits'; it must be a whole number from 2 to {MAX_BITS}"
    assert unknown.startswith(
        "unknown key 'bit'; did you mean 'bits'? known keys: 'bits', 'block', 'exclude', 'first_last_bits', "
    )
    assert problems(Match) == ["an empty match; give 'type', 'name' or both; leave the match out to match everything"]


def test_every_problem_of_every_rule_is_a_line_that_names_the_rule() -> None:
    rules = [
        {"op": "prune", "target": "weight", "sparcity": 0.5, "sparsity": 2},
        {"op": "quantize", "target": "weight", "bits": 99},
        {"op": "quantize", "target": "weight", "bits": 8},
        {"op": "quantise"},
        {"target": "weight"},
        "Q8(w)",
    ]
    first, unknown, third, op, no_op, no_rule, version = problems(Spec, rules=rules, versoin=1)
    where = "in rule 1 {'op': 'prune', 'target': 'weight', 'sparcity': 0.5, 'sparsity': 2}"
    assert first == f"'sparsity' is 2 {where}; it must be a number from 0 to 1"
    assert unknown.startswith(
        f"unknown key 'sparcity' {where}; did you mean 'sparsity'? known keys: 'composition', 'criterion', 'end', "
    )
    assert third == f"'bits' is 99 in rule 2 'Q99(w)'; it must be a whole number from 2 to {MAX_BITS}"
    assert (
        op
        == "'op' is 'quantise' in rule 4 {'op': 'quantise'}; did you mean 'quantize'? it must be 'prune' or 'quantize'"
    )
    assert no_op == "missing key 'op' in rule 5 {'target': 'weight'}; it must be 'prune' or 'quantize'"
    assert no_rule == "rule 6 is 'Q8(w)'; write a mapping such as {op: prune, target: weight, sparsity: 0.5}"
    assert version == "unknown key 'versoin'; did you mean 'version'? known keys: 'rules', 'version'"


def test_matches_inside_rules_name_the_rule() -> None:
    rule = {"op": "quantize", "target": "weight", "bits": 8, "match": {}}
    assert problems(Spec, rules=[rule])[0].startswith("an empty match in 'match' in rule 1 {'op': 'quantize', ")


def test_long_values_are_cut_in_messages() -> None:
    (line,) = problems(Prune, sparsity="x" * 10_000, target="weight")
    assert len(line) < 200


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "a spec is not None; write rules as 'P0.5"),
        ("Prune(0.5)", r"a spec is not 'Prune\(0.5\)'; write rules as"),
        ("- {op: quantize, target: weight, bits: 8}", "a spec is not .*a mapping with the key 'rules'"),
        (3, "a spec is not 3; write rules as"),
        ({}, "missing key 'rules'; it must be a list of at least one rule"),
        ([], r"'rules' is \[\]; write a list of at least one rule"),
        ({"rules": {"op": "prune"}}, "'rules' is {'op': 'prune'}; write a list"),
        ({1: 2, "rules": [Quantize(bits=8, target="weight")]}, "^unknown key 1; known keys: 'rules', 'version'$"),
        ({"rules": [Quantize(bits=8, target="weight")], "version": 2}, "'version' is 2; it must be 1"),
        ("P1.5(w)", r"'sparsity' is 1.5 in rule 1 'P1.5\(w\)'; it must be a number from 0 to 1"),
        ("Q8(w)@140%", r"'start' is '140%' in rule 1 'Q8\(w\)@140%'; a percentage of training is from '0%' to '100%'"),
        ("rules: [{op: prune, op: prune}]", "the YAML does not parse: key 'op' is given twice"),
        ("nowhere.yaml", "cannot read 'nowhere.yaml': No such file or directory; check the path"),
    ],
)
def test_what_is_no_spec(value: object, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        Spec.of(value)


def test_notation_comes_before_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Q8(w)", "plan"):
        Path(name).touch()
    assert str(Spec.of("Q8(w)")) == "Q8(w)"
    assert problems(Spec.of, "plan")[0].startswith("'plan' is not a spec file")


def test_notation_that_does_not_parse_is_a_notation_error() -> None:
    with pytest.raises(NotationError, match="column 3"):
        Spec.of("Q8[w]")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "plan.ini").touch()
    (tmp_path / "latin.yaml").write_bytes(b"rules: \xe9")
    (tmp_path / "list.json").write_text('{"rules": [}')
    (tmp_path / "bits.toml").write_text('[[rules]]\nop = "quantize"\ntarget = "weight"\nbits = 99\n')
    assert problems(Spec.of, str(tmp_path / "plan.ini")) == [
        f"'{tmp_path}/plan.ini' is not a spec file; its name must end in .yaml, .yml, .toml, .json"
    ]
    assert problems(Spec.load, tmp_path / "latin.yaml") == [
        f"cannot read '{tmp_path}/latin.yaml': byte 7 is not UTF-8; save it as UTF-8 text"
    ]
    assert problems(Spec.load, tmp_path / "list.json") == [
        f"in file '{tmp_path}/list.json':",
        "the JSON does not parse: Expecting value: line 1 column 12 (char 11)",
    ]
    assert problems(Spec.load, tmp_path / "bits.toml") == [
        f"in file '{tmp_path}/bits.toml':",
        f"'bits' is 99 in rule 1 'Q99(w)'; it must be a whole number from 2 to {MAX_BITS}",
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted({*Prune.model_fields, *Quantize.model_fields})), JSON_VALUES)
def test_any_value_of_any_key_is_read_or_refused_in_one_way(key: str, value: object) -> None:
    rule = {"op": "prune", "target": "weight", "sparsity": 0.5, key: value}
    try:
        spec = Spec.of([rule])
    except SpecError as error:
        assert "rule 1" in str(error)
    else:
        assert Spec.parse(str(spec)) == spec


@given(st.text(alphabet="PQ0.58(wf,)->@%→ \n:{}[]", max_size=24))
def test_any_text_is_read_or_refused_in_one_way(text: str) -> None:
    try:
        spec = Spec.parse(text)
    except SpecError as error:
        assert str(error)
    else:
        assert Spec.parse(str(spec)) == spec


# For editors.


def test_json_schema_describes_every_field() -> None:
    schema = Spec.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "Spec"
    assert schema["required"] == ["rules"]
    assert schema["$defs"]["Prune"]["required"] == ["op", "target"]
    assert schema["$defs"]["Quantize"]["required"] == ["op", "target", "bits"]
    assert {"type": "string", "enum": ["weight", "activation"]} in schema["$defs"]["Prune"]["properties"]["target"][
        "anyOf"
    ]
    for model in (schema, *schema["$defs"].values()):
        assert all(": " in field["description"] for field in model["properties"].values())
    json.dumps(schema)


def test_reading_a_spec_needs_no_torch() -> None:
    code = """
import sys, types
package = types.ModuleType("fxcompress")  # without what its __init__ imports
package.__path__ = ["fxcompress"]
sys.modules |= {"fxcompress": package, "torch": None}
import fxcompress.timing
print(fxcompress.timing.plan(fxcompress.timing.Spec.parse("Q8(w)"), 10)[0].steps)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "(8,)\n"
