"""Specs to compare: the same window for each order, and all at once."""

from __future__ import annotations

import pytest

import fxcompress as fxc
from fxcompress.errors import SpecError
from fxcompress.spec import Spec
from fxcompress.timing import plan

ORDERS = {"prune first": "P0.5(w,f) -> Q8(w,f)", "quantize first": "Q8(w,f) -> P0.5(w,f)", "Q": "Q8(w)"}


def steps_of(spec: Spec) -> list[int]:
    return sorted({act.step for phase in plan(spec, 1000) for act in phase.acts_of()})


def test_matched_arms_share_their_first_and_last_event_and_the_steps_between() -> None:
    arms = fxc.matched_arms({k: v for k, v in ORDERS.items() if k != "Q"}, "10%", "70%")
    first, second = (steps_of(spec) for spec in arms.values())
    assert all(abs(a - b) <= 1 for a, b in zip(first, second, strict=True))
    assert (first[0], first[-1], len(first)) == (100, 700, 10)
    assert str(arms["quantize first"]).startswith("Q8(w)@10% -> Q8(f)@16.6667% -> P0.5(w)@23.3333%..43.3333%")


def test_a_single_event_acts_where_the_others_end() -> None:
    assert steps_of(fxc.matched_arms(ORDERS)["Q"]) == [600]


def test_at_once_starts_all_rules_together_and_ends_with_the_others() -> None:
    spec = fxc.at_once("P0.5(w,f) -> Q8(w,f)", "20%", "60%")
    assert str(spec) == "P0.5(w,f)@20%..60% -> Q8(w,f)@20%"
    assert steps_of(spec)[0] == 200 and steps_of(spec)[-1] == 600


def test_times_and_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match=r"arm 'a' has times in 'Q8\(w\)@5%'"):
        fxc.matched_arms({"a": "Q8(w)@5%"})
    with pytest.raises(SpecError, match="end is '20%', not later than start '20%'"):
        fxc.matched_arms(ORDERS, "20%", "20%")
    with pytest.raises(SpecError, match=r"start is 0\.2; write a share of training such as '20%'"):
        fxc.at_once("Q8(w)", 0.2)  # type: ignore[arg-type]
