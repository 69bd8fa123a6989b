"""Timelines as curves, bars of text and pictures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from helpers import Mlp, rows, seeded

import fxcompress as fxc
from fxcompress.cli import main
from fxcompress.errors import ExportError, ScheduleError
from fxcompress.spec import Spec
from fxcompress.timing import plan
from fxcompress.tracks import Track, bars, tracks

SPEC = "P0.5(w)@30%..50% -> Q8(w)@60% -> P0.3(f)@60%..80% -> Q8(f)@85%"


def test_a_track_follows_its_rule() -> None:
    found = tracks(plan(Spec.parse(SPEC), 1000))
    assert [t.label for t in found] == ["P0.5(w)", "Q8(w)", "P0.3(f)", "Q8(f)"]
    assert [found[0].value_at(step) for step in (299, 300, 500, 1000)] == [0, pytest.approx(0.2890625), 0.5, 0.5]
    assert [found[1].value_at(step) for step in (599, 600)] == [32, 8]
    assert [found[0].share_at(step) for step in (0, 1000)] == [0, 1]


def test_a_lifted_mask_falls_back_to_zero() -> None:
    rule = {"op": "prune", "target": "weight", "sparsity": 0.5, "start": 10, "ramp": "one-shot", "release": 50}
    assert tracks(plan(Spec.of({"rules": [rule]}), 100))[0].points == ((10, 0.5), (50, 0.0))


def test_bars_rise_where_rules_act() -> None:
    assert bars(tracks(plan(Spec.parse(SPEC), 1000)), 1000, width=20) == [
        "P0.5(w) ·····▅▅█████████████",
        "Q8(w)   ···········█████████",
        "P0.3(f) ···········▅▅███████",
        "Q8(f)   ················████",
    ]


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_pictures_are_written(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"plan.{form}"
    assert main(["plan", SPEC, "--steps", "1000", "--picture", str(file)]) == 0
    assert file.stat().st_size > 5_000
    if form == "svg":
        texts = {element.text for element in ElementTree.parse(file).iter() if element.text}
        assert {"P0.5(w)", "Q8(f)", "sparsity", "bits", "optimizer step"} <= texts
        again = tmp_path / "again.svg"
        main(["plan", SPEC, "--steps", "1000", "--picture", str(again)])
        assert file.read_bytes() == again.read_bytes()


def test_a_picture_of_training_has_its_learning_rates(tmp_path: Path) -> None:
    model = seeded(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 10)
    net = fxc.compress(model, "P0.5(w)@20%..60% -> Q8(w)@80%", rows(), total_steps=10, optimizer=optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        net(rows()).sum().backward()
        optimizer.step()
        decay.step()
    assert net.schedule.rates == {k: pytest.approx(0.5 * (1 - (k - 1) / 10)) for k in range(1, 11)}
    net.schedule.picture(tmp_path / "net.svg")
    assert "learning rate" in (tmp_path / "net.svg").read_text()
    *_, grid, rate = net.schedule.timeline().splitlines()
    assert grid.startswith("Q8(w)   ·") and rate.startswith("lr 0.5  ") and "███▇" in rate and "▂" in rate


def test_few_rates_are_kept_of_a_long_training() -> None:
    model = seeded(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    net = fxc.compress(model, "Q8(w)@3", rows(), total_steps=10_000, optimizer=optimizer)
    for _ in range(60):
        optimizer.step()
    assert list(net.schedule.rates) == [3, 20, 40, 60]


def test_wrong_names_and_unknown_lengths_are_refused(tmp_path: Path) -> None:
    net = fxc.compress(seeded(Mlp), "Q8(w)@3", rows())
    with pytest.raises(ScheduleError, match="a picture needs the length of training; pass total_steps="):
        net.schedule.picture(tmp_path / "net.svg")
    net = fxc.compress(seeded(Mlp), "Q8(w)@3", rows(), total_steps=5)
    with pytest.raises(ExportError, match=r"net.gif' is no name for a picture; it must end in .png, .svg, .pdf"):
        net.schedule.picture(tmp_path / "net.gif")
    assert Track("Q8(w)", False, ()).share_at(3) == 0
