"""Curves of sparsity, scales and clipping."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Does, Fc, Mlp, copies, image, rows, seeded, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import fxcompress as fxc
from fxcompress.errors import CaptureError, FxCompressError, InputError, ScheduleError
from fxcompress.gates import gated
from fxcompress.render import render

PLAIN = {"rules": [{"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 1}]}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.bn(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


class Gated(Small):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU()


class Recorder:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.curves.setdefault(tag, []).append((step, value))

    def last(self) -> dict[str, float]:
        return {tag: points[-1][1] for tag, points in self.curves.items()}


def logged(net: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    recorder = Recorder()
    fxc.log_curves(net, recorder, *args, **kwargs)
    return recorder.last()


def test_sparsity_is_the_share_of_zeros() -> None:
    found = logged(trained(seeded(Mlp), "P0.5(w)", rows()))
    assert found == {"sparsity/fc1.weight": 0.5, "sparsity/fc2.weight": 0.5, "total/sparsity_of_weights": 0.5}


def test_before_its_event_a_pruner_has_no_zeros_and_a_quantizer_no_curve() -> None:
    net = fxc.compress(seeded(Small), "P0.5(w,f) -> Q8(w,f)", image(), total_steps=100)
    found = logged(net, inputs=image())
    assert not any(tag.startswith(("scale/", "clipped/", "total/clipped")) for tag in found)
    assert set(found.values()) == {0.0} and found["total/quantized_weights"] == 0.0


def test_totals_count_elements() -> None:
    net = trained(seeded(Mlp), "P0.5(w)", rows())
    net.get_submodule("compression.fc1.weight_pruner").keep(torch.ones(4, 3, dtype=torch.bool))
    assert logged(net)["total/sparsity_of_weights"] == 4 / (12 + 8)


def test_a_scale_of_channels_is_given_by_its_mean() -> None:
    net = trained(seeded(Mlp), "Q8(w,f)", rows())
    found = logged(net)
    scale = net.compression.fc1.weight_quantizer.scale
    assert scale.shape == (4,) and found["scale/fc1.weight"] == float(scale.mean())
    assert found["scale/x"] == float(net.compression.x_quantizer.scale)


def test_clipping_of_weights_is_that_of_the_weights_now() -> None:
    net = trained(seeded(Fc), "Q8(w)", rows())
    assert logged(net)["clipped/fc.weight"] == 0.0
    with torch.no_grad():
        net.fc.weight[0, 0] = 1e3
    found = logged(net)
    assert found["clipped/fc.weight"] == found["total/clipped_of_weights"] == 1 / 6


def test_a_pruned_weight_is_clipped_as_its_quantizer_gets_it() -> None:
    net = trained(seeded(Fc), "P0.5(w) -> Q8(w)", rows())
    with torch.no_grad():
        net.fc.weight.masked_fill_(~net.compression.fc.weight_pruner.mask, 1e3)
    assert logged(net)["clipped/fc.weight"] == 0.0


def test_half_a_step_beyond_the_grid_is_not_clipped() -> None:
    net = trained(seeded(Fc), "Q8(w)", rows())
    quantizer, grid = net.compression.fc.weight_quantizer, net.compression.fc.weight_quantizer.grid
    steps = torch.tensor([[grid.qmin - 0.49, 0.0, grid.qmax + 0.49], [grid.qmin - 0.51, 1.0, grid.qmax + 0.51]])
    assert int(quantizer.clipped(steps * quantizer.scale[:, None])) == 2


def test_clipping_of_activations_needs_a_batch() -> None:
    net = trained(seeded(Fc), "Q8(w,f)", rows())
    assert "clipped/x" not in logged(net)
    assert logged(net, inputs=rows())["clipped/x"] == 0.0
    beyond = rows()
    beyond[0] = 1e3
    found = logged(net, inputs=beyond)
    assert found["clipped/x"] == 3 / 12 and found["clipped/fc"] == 0.0
    assert found["total/clipped_of_activations"] == 3 / (12 + 8)


def test_a_quantizer_that_is_called_twice_counts_both() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        m.calls.append(1)  # an island, whose layer is captured
        return m.layer(m.layer(x) * 0 + 1e3)  # type: ignore[no-any-return]

    model = Does(twice, nn.Linear(3, 3))
    model.calls = []
    net = trained(model, "Q8(w,f)", rows())
    net.compression.layer.input_quantizer.scale.fill_(0.01)
    assert logged(net, inputs=rows() * 0)["clipped/layer.input"] == 0.5


def test_a_gated_quantizer_counts_what_it_rounds() -> None:
    net = trained(seeded(Gated), PLAIN, image())
    assert "%act_quantizer = compression.act_quantizer:Quantizer(%act, " in render(net)
    seen: list[Tensor] = []
    handle = net.compression.act_quantizer.register_forward_pre_hook(lambda _, args: seen.append(gated(args[1])))
    found = logged(net, inputs=image() * 50)
    handle.remove()
    quantizer = net.compression.act_quantizer
    assert found["clipped/act"] == int(quantizer.clipped(seen[0])) / seen[0].numel() > 0


def test_learned_scales_are_those_that_act() -> None:
    rule = {"op": "quantize", "target": "weight", "bits": 8, "scale": "learned", "start": 1}
    model = seeded(Fc)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    net: Any = fxc.compress(model, {"rules": [rule]}, rows(), total_steps=2, optimizer=optimizer)
    net(rows()).sum().backward()
    optimizer.step()
    with torch.no_grad():
        net.compression.fc.weight_quantizer.scale.neg_()
    found = logged(net)
    assert found["scale/fc.weight"] > 0 and found["clipped/fc.weight"] == 0.0


def test_the_net_stays_as_it_was() -> None:
    net: Any = fxc.compress(seeded(Small), "P0.5(f) -> Q8(f)", image(), total_steps=20)
    net.train()
    net.bn.eval()
    for _ in range(14):  # the window of the quantizers is open
        net(image())
        net.schedule.step()
    assert any(module.observing for module in net.compression.modules() if hasattr(module, "observing"))
    before, draws = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    logged(net, inputs=image() * 100)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
    assert net.training and net.conv.training and not net.bn.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_copies_have_the_same_curves() -> None:
    net = trained(seeded(Small), "P0.5(w,f) -> Q8(w,f)", image())
    first, *others = (logged(twin, inputs=image()) for twin in copies(net))
    assert others == [first, first]


def test_steps_are_those_of_the_schedule_unless_given() -> None:
    net = trained(seeded(Fc), "P0.5(w)", rows())
    recorder = Recorder()
    fxc.log_curves(net, recorder)
    fxc.log_curves(net, recorder, 70)
    assert [step for step, _ in recorder.curves["sparsity/fc.weight"]] == [4, 70]


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    net: Any = fxc.compress(seeded(Fc), "P0.5(w) -> Q8(w,f)", rows(), total_steps=20)
    with SummaryWriter(str(tmp_path)) as writer:
        for _ in range(20):
            net(rows())
            net.schedule.step()
            fxc.log_curves(net, writer, inputs=rows())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(logged(net, inputs=rows()))
    sparsity = events.Scalars("sparsity/fc.weight")
    assert [event.step for event in sparsity] == list(range(1, 21))
    values = [event.value for event in sparsity]
    assert values[-1] == 0.5 and values == sorted(values)
    [event, *_] = [event for event in net.schedule.events if event.action == "quantize" and event.kind == "weight"]
    assert events.Scalars("clipped/fc.weight")[0].step == event.step


def test_what_cannot_be_logged_is_refused() -> None:
    net = trained(seeded(Fc), "P0.5(w) -> Q8(w,f)", rows())
    with pytest.raises(ScheduleError, match=r"got DataParallel; pass the net itself"):
        fxc.log_curves(nn.DataParallel(net), Recorder())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'str' has no add_scalar; pass a torch\.utils\.tensorboard\.SummaryWriter"):
        fxc.log_curves(net, "runs")  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="do not fit"):
        fxc.log_curves(net, Recorder(), inputs=(rows(), rows(), rows()))
    with pytest.raises((FxCompressError, RuntimeError)):
        fxc.log_curves(net, Recorder(), inputs=rows(5))
    assert not any(module._forward_pre_hooks for module in net.modules())
