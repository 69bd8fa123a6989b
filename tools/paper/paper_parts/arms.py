"""The arms of a task: float, and a spec file for each other one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import fxcompress as fxc
from fxcompress.spec import Spec

SPECS = Path(__file__).parent.parent / "specs"
KINDS = ("paper", "matched")
ORDERS = {
    "P(w) -> Q(w,f)": "P0.5(w) -> Q8(w,f)",
    "Q(w,f) -> P(w)": "Q8(w,f) -> P0.5(w)",
    "P(w,f) -> Q(w,f)": "P0.5(w,f) -> Q8(w,f)",
    "Q(w,f) -> P(w,f)": "Q8(w,f) -> P0.5(w,f)",
}
FLOAT = "float"


def specs_of(task: str, batch: int, dense: tuple[str, ...]) -> dict[str, dict[str, Spec]]:
    """By kind and arm: the paper's times, and the same orders in one window; all with the paper's choices.

    Pairs are matched among themselves: those that prune weights alone have fewer events than those that prune both.
    """
    pairs = [dict(list(ORDERS.items())[i : i + 2]) for i in (0, 2)]
    kinds: dict[str, Mapping[str, Spec]] = {
        "paper": fxc.paper_arms(task),
        "matched": {name: spec for pair in pairs for name, spec in fxc.matched_arms(pair).items()},
    }
    return {
        kind: {name: fxc.paper_choices(spec, task, batch_size=batch, dense=dense) for name, spec in arms.items()}
        for kind, arms in kinds.items()
    }


def file_of(task: str, kind: str, arm: str) -> Path:
    """Where an arm's spec stands."""
    words = re.sub(r"[^a-z]+", "-", arm.lower().replace("->", " then ").replace("(", "").replace(",", "")).strip("-")
    return SPECS / task / kind / f"{words}.yaml"


def arms_of(task: str, kind: str) -> dict[str, Path | None]:
    """By name the spec files of a kind of arms, None for float."""
    names = [*(["Q(w,f)"] if kind == "paper" else []), *ORDERS]
    return {FLOAT: None, **{name: file_of(task, kind, name) for name in names}}
