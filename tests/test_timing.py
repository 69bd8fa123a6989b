"""When rules act: the default order, explicit times, their mixture, and times that cannot be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ordered_specs, untimed_specs

from fxcompress.errors import SpecError
from fxcompress.rules import Prune, Quantize
from fxcompress.spec import Spec
from fxcompress.timing import Phase, plan


def steps(spec: str | Spec, total_steps: int | None = None) -> list[tuple[int, ...]]:
    return [phase.steps for phase in plan(Spec.of(spec), total_steps)]


def check_phases(spec: Spec, phases: tuple[Phase, ...]) -> None:
    expected = [(index, target) for index, rule in enumerate(spec.rules) for target in rule.target]
    assert [(phase.rule_index, phase.target) for phase in phases] == expected
    for phase in phases:
        assert phase.rule is spec.rules[phase.rule_index]
        assert len(phase.steps) == (len(phase.rule.levels()) if isinstance(phase.rule, Prune) else 1)
        assert list(phase.steps) == sorted(phase.steps)


@given(untimed_specs(), st.sampled_from([1, 2, 5, 10]) | st.integers(1, 10**6))
def test_without_times_all_acts_in_order_between_step_1_and_80_percent(spec: Spec, total_steps: int) -> None:
    phases = plan(spec, total_steps)
    check_phases(spec, phases)
    every = [step for phase in phases for step in phase.steps]
    assert every == sorted(every)
    assert every[0] >= 1
    assert every[-1] == max(1, round(total_steps * 0.8))
    if total_steps > 2 * len(every):
        assert len(set(every)) == len(every)


@given(ordered_specs(), st.integers(100, 10**6))
def test_order_is_kept_around_explicit_times(spec: Spec, total_steps: int) -> None:
    phases = plan(spec, total_steps)
    check_phases(spec, phases)
    assert all(1 <= step <= total_steps for phase in phases for step in phase.steps)
    starts = [phase.steps[0] for phase in phases]
    assert starts == sorted(starts)
    for earlier, later in pairwise(phases):
        if later.rule.start is None:
            assert later.steps[0] >= earlier.steps[-1]
    for phase in phases:
        if phase.rule.start is not None:
            percent = int(str(phase.rule.start).rstrip("%"))
            assert abs(phase.steps[0] - total_steps * percent / 100) <= 0.5


@given(ordered_specs(), st.integers(100, 10**4))
def test_notation_file_and_object_have_one_plan(spec: Spec, total_steps: int) -> None:
    assert plan(Spec.parse(str(spec)), total_steps) == plan(spec, total_steps)


def test_default_times_of_the_readme_spec() -> None:
    phases = plan(Spec.parse("P0.5(w,f) -> Q8(w,f)"), 1000)
    assert [(phase.rule_index, phase.target, phase.steps) for phase in phases] == [
        (0, "weight", (80, 160, 240, 320)),
        (0, "activation", (400, 480, 560, 640)),
        (1, "weight", (720,)),
        (1, "activation", (800,)),
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("P0.5(w,f)@40%..64%", [(400, 480, 560, 640), (400, 480, 560, 640)]),
        ("P0.5(w)@100..101", [(100, 100, 101, 101)]),
        ("P0.5(w)@30%..300", [(300, 300, 300, 300)]),
        ("P0.5(w)@40%", [(400, 500, 600, 700)]),
        ("P0.5(w)@90%", [(900, 925, 950, 975)]),
        ("P0.5(w)@80%", [(800, 850, 900, 950)]),
        ("P0.5(w)@1000 -> Q8(w)", [(1000,) * 4, (1000,)]),
        ("P0.5(w)@40% -> Q8(w)@600", [(400, 450, 500, 550), (600,)]),
        ("P0.5(w)@40% -> Q8(w)@40%", [(400, 500, 600, 700), (400,)]),
        ("P0.5(w)@40% -> Q8(w)", [(400, 500, 600, 700), (800,)]),
        ("Q8(w,f) -> P0.5(w)@60%..80% -> Q4(w) -> Q4(f)", [(200,), (400,), (600, 667, 733, 800), (900,), (1000,)]),
        ("Q8(w) -> Q8(f)@1", [(1,), (1,)]),
        ("Q8(w)@0 -> Q8(f)", [(0,), (800,)]),
        ("Q8(w)@0% -> Q8(f)@100%", [(0,), (1000,)]),
    ],
)
def test_explicit_times(spec: str, expected: list[tuple[int, ...]]) -> None:
    assert steps(spec, 1000) == expected


@pytest.mark.parametrize(
    ("percent", "total_steps", "step"),
    [("50%", 5, 2), ("50%", 7, 4), ("37.5%", 1000, 375), ("0.7%", 1000, 7), ("1%", 10, 1), ("0%", 10, 0)],
)
def test_percentages_round_half_to_even(percent: str, total_steps: int, step: int) -> None:
    assert steps(f"Q8(w)@{percent}", total_steps) == [(step,)]


def test_one_shot_and_own_number_of_steps() -> None:
    one_shot = Prune(target="weight", sparsity=0.5, ramp="one-shot", start=300)
    ramp = Prune(target="activation", sparsity=0.5, steps=2)
    assert steps(Spec(rules=[one_shot, ramp]), 1000) == [(300,), (550, 800)]


def test_a_list_may_start_later_rules_earlier_but_rules_without_start_follow_all_before_them() -> None:
    rules = [Quantize(bits=8, target="weight", start="60%"), Quantize(bits=8, target="activation", start="20%")]
    assert steps(Spec(rules=[*rules, Prune(target="weight", sparsity=0.5)]), 1000) == [
        (600,),
        (200,),
        (650, 700, 750, 800),
    ]


def test_absolute_steps_need_no_total() -> None:
    assert steps("P0.5(w)@60 -> Q8(w)@500") == [(60, 170, 280, 390), (500,)]
    assert steps("P0.5(w)@60..90") == [(60, 70, 80, 90)]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("Q8(w)@5 -> Q4(w)@40%", r"rule 2 'Q4\(w\)@40%' gives its start as 40% of training; pass total_steps="),
        ("P0.5(w)@5..40%", r"rule 1 'P0.5\(w\)@5..40%' gives its end as 40% of training; pass total_steps="),
        ("Q8(w)@5 -> Q4(f)", r"rule 2 'Q4\(f\)' has no start; pass total_steps=, .* \(or give every rule a start"),
        ("P0.5(w)@5", r"rule 1 'P0.5\(w\)@5' has no end; pass total_steps=, .* \(or give its ramp an 'end'\)"),
    ],
)
def test_missing_total_steps(spec: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        steps(spec)


@pytest.mark.parametrize("total_steps", [0, -1, True, 10.0, "10"])
def test_wrong_total_steps(total_steps: object) -> None:
    with pytest.raises(SpecError, match=f"total_steps is {total_steps!r}; it must be a whole number"):
        plan(Spec.parse("Q8(w)"), total_steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("Q8(w)@5000", r"rule 1 'Q8\(w\)@5000': 'start' is step 5000, past total_steps=1000; write a step up to 1000"),
        ("P0.5(w)@1%..1001", r"'end' is step 1001, past total_steps=1000"),
        ("P0.5(w)@500..40%", r"ends at step 400, before it starts at step 500 of total_steps=1000; move"),
        (
            "P0.5(w)@60% -> Q8(w)@500",
            r"rule 2 'Q8\(w\)@500' starts at step 500, before rule 1 'P0.5\(w\)@60%', which starts at step 600",
        ),
        ("P0.5(w) -> Q8(w)@0", r"rule 1 'P0.5\(w\)' has no start, and .* between step 0 and rule 2 'Q8\(w\)@0'"),
        ("P0.5(w)@10% -> Q8(f) -> Q8(w)@10%", r"rule 2 'Q8\(f\)' has no start, .* between step 625 and rule 3"),
        (
            "P0.5(w)@10%..64% -> Q8(f) -> Q8(w)@50%",
            r"rule 2 'Q8\(f\)' has no .* step 640 and .* at step 500; give",
        ),
    ],
)
def test_times_that_cannot_be(spec: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        steps(spec, 1000)


def test_a_list_has_no_arrows_to_contradict() -> None:
    rules = Spec.parse("P0.5(w)@60% -> Q8(w)@500").rules
    assert steps(Spec(rules=rules), 1000) == [(600, 650, 700, 750), (500,)]


def test_epochs_are_steps_of_their_length() -> None:
    spec = Spec.parse("P0.5(w)@2ep..3.5ep -> Q8(w)@4 epochs".replace(" epochs", "ep"))
    assert [p.steps for p in plan(spec, 100, 20)] == [(40, 50, 60, 70), (80,)]
    assert str(spec) == "P0.5(w)@2ep..3.5ep -> Q8(w)@4ep"
    assert Spec.of({"rules": [{"op": "quantize", "target": "weight", "bits": 8, "start": "4 epochs"}]}) == Spec.parse(
        "Q8(w)@4ep"
    )


def test_epochs_want_their_length_and_an_end_of_training_behind_them() -> None:
    spec = Spec.parse("Q8(w)@4ep")
    with pytest.raises(SpecError, match=r"rule 1 'Q8\(w\)@4ep' gives its start as 4ep; pass steps_per_epoch="):
        plan(spec, 100)
    with pytest.raises(SpecError, match="is step 120, past total_steps=100"):
        plan(spec, 100, 30)
    with pytest.raises(SpecError, match="steps_per_epoch is 0; it must be a whole number"):
        plan(spec, 100, 0)
