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


class Layers(nn.Module):
    """Products of all kinds, with a bias, a batch norm or neither to take up a shift; one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), nn.Conv2d(6, 6, 1)
        self.d, self.e = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(torch.relu(self.bn(self.a(x))))
        x = self.c(torch.relu(self.c(x)))
        return self.e(torch.relu(self.d(x.mean((2, 3)))))  # type: ignore[no-any-return]


def test_corrected_biases_take_up_the_mean_error_of_the_weights() -> None:
    rules = [{"op": "quantize", "target": "weight", "bits": 4, "first_last_bits": 4}]
    batches = [image() * k for k in (1, 2)]
    model = seeded(Layers)
    before = copy.deepcopy(model)
    net = compressed(model, image(), {"rules": rules})
    fxc.calibrate(net, batches, correct_bias=True)
    shifted = [n for n, t in net.state_dict().items() if n in before.state_dict() and not _equal(t, before, n)]
    assert shifted == ["bn.running_mean", "b.bias", "c.bias", "d.bias"]
    assert not [n for n, _ in net.named_modules() if "error" in n]
    with torch.no_grad():
        inputs, rounded = torch.cat(batches), net.compression.a.weight_quantizer(net.a.weight)
        error = nn.functional.conv2d(inputs, rounded - net.a.weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(net.bn.running_mean, before.bn.running_mean + error)


def _equal(value: Any, model: nn.Module, name: str) -> bool:
    return torch.equal(value, model.state_dict()[name])


def test_corrected_biases_bring_outputs_nearer(tmp_path: Any) -> None:
    batches = [image() * k for k in (1, 2)]
    distances = {}
    for correct in (False, True):
        model = seeded(Layers).eval()
        expected = model(batches[1]).detach()
        net = compressed(model, image(), {"rules": [{"op": "quantize", "target": "weight", "bits": 3}]})
        fxc.calibrate(net, batches, correct_bias=correct)
        distances[correct] = float((net.eval()(batches[1]) - expected).detach().square().mean())
    assert distances[True] < distances[False]
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok


def test_batches_that_can_be_read_once_cannot_correct_biases() -> None:
    net = compressed(seeded(Mlp), rows())
    with pytest.raises(ScheduleError, match="generator, which can be read once, and correct_bias=True reads it twice"):
        fxc.calibrate(net, (rows() for _ in range(2)), correct_bias=True)
    assert net.schedule.pending()
