"""The paper's arms and choices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress as fxc
from fxcompress.errors import SpecError
from fxcompress.paper import PUBLISHED
from fxcompress.spec import Spec
from fxcompress.timing import plan


def steps_of(spec: Spec, total: int = 1000) -> list[int]:
    return sorted({act.step for phase in plan(spec, total) for act in phase.acts_of()})


def test_the_papers_times_are_its_own() -> None:
    arms = fxc.paper_arms("classification")
    assert list(arms) == ["Q(w,f)", "P(w) -> Q(w,f)", "Q(w,f) -> P(w)", "P(w,f) -> Q(w,f)", "Q(w,f) -> P(w,f)"]
    epochs = {name: [round(step / 4) for step in steps_of(spec)] for name, spec in arms.items()}
    assert epochs["P(w,f) -> Q(w,f)"] == [115, 130, 145, 160, 230, 235]
    assert epochs["Q(w,f) -> P(w)"] == [160, 170, 195, 210, 225, 240]
    epochs = {name: [step // 5 for step in steps_of(spec)] for name, spec in fxc.paper_arms("super-resolution").items()}
    assert epochs["P(w) -> Q(w,f)"] == [145, 150, 155, 160, 170]
    assert epochs["Q(w,f) -> P(w,f)"] == [140, 150, 160, 165, 170, 175]


def test_a_detectors_late_times_and_a_generators() -> None:
    steps = {name: [step / 100 for step in steps_of(spec, 900)] for name, spec in fxc.paper_arms("detection").items()}
    assert steps["P(w,f) -> Q(w,f)"] == [3, 3.5, 4, 4.5, 7.2, 7.5]
    assert steps["Q(w,f) -> P(w)"] == [5.2, 5.5, 5.7, 6.2, 6.7, 7.2]
    assert steps["Q(w,f) -> P(w,f)"] == [6.5, 6.8, 6.9, 7.4, 7.9, 8.4]
    steps = {name: [step / 10 for step in steps_of(spec, 3000)] for name, spec in fxc.paper_arms("cyclegan").items()}
    assert steps["P(w) -> Q(w,f)"] == [100, 115, 130, 145, 280, 290]
    assert steps["Q(w,f) -> P(w,f)"] == [110, 120, 130, 145, 160, 175]


@pytest.mark.parametrize("task", PUBLISHED)
def test_choices_keep_times_and_sparsities(task: str) -> None:
    for name, spec in fxc.paper_arms(task).items():
        chosen = fxc.paper_choices(spec, task, batch_size=16, dense=["first", "last"])
        assert steps_of(chosen) == steps_of(spec), name
        assert Spec.parse(str(chosen)) == chosen
        for rule in chosen.rules:
            if rule.op == "quantize":
                assert rule.scale == "power-of-two"


def test_choices_are_the_papers() -> None:
    arm = fxc.paper_arms("cyclegan")["P(w,f) -> Q(w,f)"]
    of_weights, of_activations, weights, activations = fxc.paper_choices(
        arm, "cyclegan", batch_size=1, dense=["a"]
    ).rules
    assert of_weights.exclude == of_activations.exclude and of_weights.exclude.name == ("a",)
    assert of_activations.window == activations.window == 128
    assert (weights.bits, weights.range, weights.per_channel) == (8, "mse", True)
    assert (activations.bits, activations.range, activations.symmetric) == (12, (0.0001, 0.9999), True)
    prune = {
        t: fxc.paper_choices(fxc.paper_arms(t)["P(w,f) -> Q(w,f)"], t, batch_size=32).rules[1]
        for t in list(PUBLISHED)[:3]
    }
    assert (prune["classification"].window, prune["classification"].pattern) == (64, "unstructured")
    assert (prune["detection"].window, prune["detection"].pattern) == (1, "channel")
    assert (prune["super-resolution"].window, prune["super-resolution"].sizes) == (2, "centre")


def test_a_net_trains_by_the_choices_on_the_papers_grid() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    spec = fxc.paper_choices(fxc.paper_arms("classification")["Q(w,f) -> P(w,f)"], "classification", batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    net = fxc.compress(model, spec, torch.randn(4, 3, 9, 9), total_steps=100, optimizer=optimizer)
    for _ in range(100):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 9, 9)).square().mean().backward()
        optimizer.step()
    scales = torch.cat([b.flatten() for name, b in net.named_buffers() if name.endswith(".scale")])
    assert torch.equal(scales.log2(), scales.log2().round())
    assert float((model[2].weight != 0).float().mean()) > 0.4


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SpecError, match="task is 'clasification'; did you mean 'classification'"):
        fxc.paper_arms("clasification")
    with pytest.raises(SpecError, match="task is 'gan'"):
        fxc.paper_choices("Q8(w)", "gan", batch_size=1)
    with pytest.raises(SpecError, match="dense is empty; name the first and the last layer of the 'pix2pix' generator"):
        fxc.paper_choices("Q8(w)", "pix2pix", batch_size=1)
