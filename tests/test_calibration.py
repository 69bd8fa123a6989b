"""Post-training quantization in one call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import ConvBnRelu, Mlp, image, rows, seeded
from torch import nn

import fxcompress as fxc
from fxcompress.errors import ScheduleError


def compressed(model: nn.Module, example: Any, spec: Any = "Q8(w,f)") -> Any:
    return fxc.compress(model, spec, example, total_steps=10)


def test_scales_come_from_the_batches() -> None:
    net = compressed(seeded(Mlp), rows())
    fxc.calibrate(net, [rows() * 3, rows() / 2])
    low, high = rows().min() * 3, rows().max() * 3
    torch.testing.assert_close(net.compression.x_quantizer.scale, (high - low) / 255)
    assert net.schedule.pending() == []


def test_the_calibrated_net_is_what_a_file_computes(tmp_path: Any) -> None:
    net = compressed(seeded(ConvBnRelu), image())
    fxc.calibrate(net, (image() * k for k in (1, 2)))
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert found.ok and found.tensors


def test_nothing_but_the_quantizers_changes() -> None:
    model = seeded(ConvBnRelu).train()
    before = copy.deepcopy(model.state_dict())
    net = compressed(model, image())
    state = torch.get_rng_state()
    fxc.calibrate(net, [image()])
    assert net.training and net.bn.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_batches_are_seen_in_evaluation_mode() -> None:
    model = seeded(ConvBnRelu)
    model.bn.running_mean.fill_(-100.0)
    net = compressed(model, image())
    fxc.calibrate(net, [image()])
    assert float(net.compression.relu_quantizer.scale) * 255 > 50  # with the batch's own statistics about 3


def test_later_training_goes_on_from_there() -> None:
    net = compressed(seeded(Mlp), rows())
    fxc.calibrate(net, [rows()])
    scale = net.compression.x_quantizer.scale.clone()
    for _ in range(5):
        net.train()(rows() * 9).sum().backward()
        net.schedule.step()
    assert torch.equal(net.compression.x_quantizer.scale, scale)


@pytest.mark.parametrize(
    ("spec", "batches", "message"),
    [
        ("Q8(w,f)", [], "no batches"),
        ("P0.5(w) -> Q8(w,f)", [rows()], r"8 events that prune have not acted, the first after step \d+ \(weight"),
    ],
)
def test_refuses_what_it_cannot_do(spec: str, batches: Any, message: str) -> None:
    net = compressed(seeded(Mlp), rows(), spec)
    with pytest.raises(ScheduleError, match=message):
        fxc.calibrate(net, batches)
    assert not net.compression.x_quantizer.is_enabled


def test_refuses_another_module() -> None:
    with pytest.raises(ScheduleError, match="got Mlp"):
        fxc.calibrate(seeded(Mlp), [rows()])  # type: ignore[arg-type]
