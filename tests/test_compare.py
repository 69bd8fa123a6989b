"""Comparing specs: arms that are alike, what is refused, what is kept, and what differences allow to say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxcompress as fxc
from fxcompress.compare import Store
from fxcompress.errors import CompareError, ExportError
from fxcompress.paired import differences, interval

STEPS = 20
ORDERS = {"prune first": "P0.5(w) -> Q8(w)", "quantize first": "Q8(w) -> P0.5(w)"}
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: fxc.held_rate(step, STEPS))
    for _ in range(STEPS):
        x = torch.randn(8, 6)
        optimizer.zero_grad()
        (net(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        rate.step()


def evaluate(net: nn.Module) -> float:
    with torch.no_grad():
        return float((net(X) - X[:, :2]).square().mean())


def compared(specs: Any, train: Any = train, build: Any = build, **options: Any) -> Any:
    options = {"example_inputs": X, "total_steps": STEPS, "seeds": range(3), **options}
    return fxc.compare(specs, build, train, evaluate, **options)


def test_arms_start_and_learn_alike_and_only_the_spec_differs() -> None:
    found = compared({"float": None, **fxc.matched_arms(ORDERS), "same": fxc.matched_arms(ORDERS)["prune first"]})
    assert found.metrics["same"] == found.metrics["prune first"] != found.metrics["quantize first"]
    assert len({run.weights for run in found.runs}) == 3
    assert found.rates("prune first") == (0.1, 0.1) and found.timing["same"][1] == 8
    same = next(d for d in found.differences if (d.first, d.second) == ("prune first", "same"))
    assert (same.mean, same.p, same.is_significant) == (0, 1, False)
    text = str(found)
    assert "matched arms" in text and "prune first minus same: +0" in text and "no significant difference" in text
    assert found.markdown().count("| prune first") == 3


def test_a_float_arm_is_the_model_trained_as_long() -> None:
    found = compared({"float": None}, seeds=[4])
    torch.manual_seed(4)
    model, optimizer = build()
    torch.manual_seed(4)
    train(model, optimizer)
    assert found.metrics["float"][4] == evaluate(model)


def test_arms_with_other_recovery_are_refused_and_allowed_on_request() -> None:
    specs = {"a": "Q8(w)@50%", "b": "Q8(w)@80%"}
    with pytest.raises(
        CompareError, match=r"recovery after the last event are 'a' 10, 'b' 4; .* or pass matched=False"
    ):
        compared(specs, train=None)
    found = compared(specs, matched=False, seeds=[0])
    assert "not matched" in str(found) and "one seed: nothing can be said" in str(found)


def test_arms_with_other_rates_at_their_events_are_refused() -> None:
    def decaying(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS)
            optimizer.step()

    specs = {"a": "P0.5(w)@20%..60%", "b": fxc.at_once("P0.5(w) -> Q8(w)", "40%")}
    with pytest.raises(CompareError, match=r"learning rates at their events are 'a' 0.045, .*hold the rate"):
        compared(specs, train=decaying)
    assert compared(specs, train=decaying, matched=False, seeds=[0]).rates("a") == pytest.approx((0.045, 0.085))
    # The same slots in another order see the same rates.
    assert compared(fxc.matched_arms(ORDERS), train=decaying, seeds=[0]).matched


def test_what_is_not_alike_is_refused() -> None:
    arms = fxc.matched_arms(ORDERS)
    generator = torch.Generator().manual_seed(0)

    def wanders() -> Any:
        model, optimizer = build()
        with torch.no_grad():
            model[0].bias.copy_(torch.randn(8, generator=generator))  # type: ignore[index,operator]
        return model, optimizer

    with pytest.raises(CompareError, match=r"'quantize first' other initial weights .* with the same seed 0"):
        compared(arms, build=wanders)
    with pytest.raises(CompareError, match=r"train took 0 steps of the optimizer for .*, not total_steps=20"):
        compared(arms, train=lambda net, optimizer: None)
    with pytest.raises(CompareError, match="build gave Sequential; return a model and the optimizer"):
        compared(arms, build=lambda: build()[0])
    with pytest.raises(CompareError, match="no specs to compare"):
        compared({})


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    store, arms, trained = tmp_path / "runs.jsonl", fxc.matched_arms(ORDERS), []

    def counting(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        trained.append(net)
        if len(trained) == 4:
            raise KeyboardInterrupt
        train(net, optimizer)

    with pytest.raises(KeyboardInterrupt):
        compared(arms, train=counting, store=store)
    with store.open("a") as file:
        file.write('{"arm": "prune fir')  # cut off by a kill
    resumed = compared(arms, train=counting, store=store)
    assert len(trained) == 4 + 3
    assert resumed.metrics == compared(arms).metrics
    assert len(Store(store).records) == 6


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(ExportError, match=r"line 1 of .* is no record"):
        Store(tmp_path / "runs.jsonl")


def test_pictures_show_every_seed(tmp_path: Path) -> None:
    compared(fxc.matched_arms(ORDERS)).picture(tmp_path / "arms.svg", "loss")
    assert "quantize first" in (tmp_path / "arms.svg").read_text()


def test_intervals_are_students() -> None:
    found = interval("a", "b", [1.0, 2.0, 3.0, 4.0])  # mean 2.5, standard error 0.6455, t(3) 3.1824
    assert (found.low, found.high) == (pytest.approx(0.4457, abs=1e-4), pytest.approx(4.5543, abs=1e-4))
    assert found.p == pytest.approx(0.0305, abs=1e-4) and found.is_significant
    assert math.isnan(interval("a", "b", [1.0]).low) and not interval("a", "b", [1.0]).is_significant


def test_many_pairs_ask_for_more_by_holms_method() -> None:
    metrics = {
        "a": {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0},
        "b": dict.fromkeys(range(4), 0.0),
        "c": {0: 0.1, 1: 0.0, 2: 0.0, 3: 0.0},
    }
    by_pair = {(d.first, d.second): d for d in differences(metrics)}
    alone = interval("a", "b", [1.0, 2.0, 3.0, 4.0]).p
    assert by_pair["a", "b"].p == pytest.approx(3 * alone)
    assert not by_pair["a", "b"].is_significant
    assert by_pair["b", "c"].p == pytest.approx(0.391, abs=1e-3)
