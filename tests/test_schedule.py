"""The schedule: what moves it, when events act, what it remembers; contract 10: resume is exact."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from models import Residual, train
from torch import nn

import fxcompress as fxc
from fxcompress.errors import ScheduleError
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

SPEC = "P0.5(w,f) -> Q8(w,f)"
SHAPE = (4, 3, 8, 8)


def make(spec: Any = SPEC, total_steps: int | None = 20, **options: Any) -> fxc.CompressedModule:
    torch.manual_seed(0)
    return fxc.compress(Residual(), spec, torch.randn(SHAPE), total_steps=total_steps, **options)


def sparsities(net: nn.Module) -> set[float]:
    return {round(1 - float(m.mask.float().mean()), 2) for m in net.modules() if isinstance(m, Pruner)}


def enabled(net: nn.Module) -> dict[str, bool]:
    return {name.rpartition(".")[2]: m.is_enabled for name, m in net.named_modules() if isinstance(m, Quantizer)}


def test_an_event_acts_after_its_step() -> None:
    net = make("P0.5(w)@2 -> Q8(w)@4", total_steps=10)
    seen = []
    for _ in range(5):
        net.schedule.step()
        seen.append((sparsities(net) != {0.0}, any(enabled(net).values())))
    assert seen == [(False, False), (True, False), (True, False), (True, True), (True, True)]


def test_by_total_steps_all_have_acted_and_a_fifth_is_recovery() -> None:
    net = make(total_steps=20)
    assert max(e.step for e in net.schedule.events) == 16
    train(net, 20, SHAPE)
    assert not net.schedule.pending()
    assert all(enabled(net).values())


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_short_trainings_still_run_all_events(total: int) -> None:
    net = make(total_steps=total)
    train(net, total, SHAPE)
    assert not net.schedule.pending()


def test_activations_are_calibrated_on_the_window_before_their_event() -> None:
    net = make(fxc.Spec(rules=[fxc.Quantize(bits=8, target="activation", start=5, window=2)]), total_steps=10)
    quantizer = net.get_submodule("compression.x_quantizer")
    net.train()
    for step in range(5):
        net(torch.full(SHAPE, float(step + 1)))
        net.schedule.step()
    assert (float(quantizer.observer.high), float(quantizer.observer.low)) == (5.0, 4.0)
    assert float(quantizer.scale) == pytest.approx(5 / 255)
    assert not quantizer.observing


def test_nothing_is_observed_in_evaluation() -> None:
    net = make("Q8(f)@2", total_steps=4)
    net.eval()(torch.full(SHAPE, 100.0))
    net.train()(torch.full(SHAPE, 1.0))
    net.schedule.step()
    net.schedule.step()
    assert float(net.get_submodule("compression.x_quantizer").observer.high) == 1.0


def test_without_a_forward_the_example_inputs_are_looked_at() -> None:
    net = make("P0.5(f)@0 -> Q8(f)@0", total_steps=4)
    scales = [float(m.scale) for m in net.modules() if isinstance(m, Quantizer)]
    assert all(0 < s < 1 for s in scales)
    assert sparsities(net) == {0.29}


def test_an_optimizer_moves_the_schedule_once_a_step() -> None:
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.schedule.attach(optimizer)
    net.schedule.attach(optimizer)
    for micro_batch in range(4):
        net(torch.randn(SHAPE)).sum().backward()
        if micro_batch % 2:
            optimizer.step()
    assert net.schedule.steps == 2
    with pytest.raises(ScheduleError, match="another optimizer is attached"):
        net.schedule.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ScheduleError, match=r"do not call schedule.step"):
        net.schedule.step()


def test_an_optimizer_made_before_compress_works() -> None:
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    net = fxc.compress(model, SPEC, torch.randn(SHAPE), total_steps=20, optimizer=optimizer)
    before = net.stem.weight.detach().clone()
    net(torch.randn(SHAPE)).sum().backward()
    optimizer.step()
    assert net.schedule.steps == 1
    assert not torch.equal(before, net.stem.weight)


def test_skipped_amp_steps_do_not_move_it() -> None:
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.schedule.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for value in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(net(torch.randn(SHAPE)).sum() * value).backward()
        scaler.step(optimizer)
        scaler.update()
    assert net.schedule.steps == 2


def test_a_fused_optimizer_told_of_infinities_does_not_move_it() -> None:
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    net.schedule.attach(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert net.schedule.steps == 0


@pytest.mark.parametrize("kill", [3, 6, 9, 13, 15])
def test_resume_is_bit_equal_wherever_it_was_killed(kill: int) -> None:
    def run(start: int, net: nn.Module, optimizer: torch.optim.Optimizer, stop: int) -> list[float]:
        losses = []
        for step in range(start, stop):
            torch.manual_seed(step)
            loss = net(torch.randn(SHAPE)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = make({"rules": [{"op": "prune", "target": ["weight", "activation"], "sparsity": 0.5},
                              {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "range": "mse"}]})  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        net.schedule.attach(optimizer)
        return net.train(), optimizer

    whole = run(0, *fresh(), 20)
    net, optimizer = fresh()
    run(0, net, optimizer, kill)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    net, optimizer = fresh()
    net.load_state_dict(saved["net"], strict=True)
    optimizer.load_state_dict(saved["optimizer"])
    assert run(kill, net, optimizer, 20) == whole[kill:]


def test_a_deep_copy_goes_its_own_way() -> None:
    net = make("P0.5(w)@2", total_steps=4)
    net.schedule.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    twin = copy.deepcopy(net)
    twin.schedule.step()
    twin.schedule.step()
    assert (twin.schedule.steps, net.schedule.steps) == (2, 0)
    assert sparsities(twin) != sparsities(net) == {0.0}


def test_timeline_is_a_table() -> None:
    text = make().schedule.timeline()
    assert "schedule over 20 steps, now at 0" in text
    assert "50.0 % zeros" in text
    assert len([line for line in text.splitlines() if "prune" in line or "quantize" in line]) == 10


def test_first_and_last_layers_keep_eight_bits_and_it_says_so() -> None:
    net = make("Q4(w,f)")
    bits = {name: m.grid.bits for name, m in net.named_modules() if isinstance(m, Quantizer)}
    assert {n for n, b in bits.items() if b == 8} == {
        "compression.stem.weight_quantizer", "compression.fc.weight_quantizer", "compression.x_quantizer",
        "compression.relu_quantizer", "compression.adaptive_avg_pool2d_quantizer", "compression.fc_quantizer",
    }  # fmt: skip
    assert "first and last layers keep 8 bits" in net.schedule.timeline()
    assert {
        m.grid.bits
        for m in make({"rules": [{"op": "quantize", "target": "weight", "bits": 4, "first_last_bits": 4}]}).modules()
        if isinstance(m, Quantizer)
    } == {4}
