"""Integer arithmetic by hand: what a quantized product computes is whole numbers, scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import Does, trained
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.grid import Grid, quantize


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3 x 3 convolution of int64, one multiplication after another."""
    n, c, h, w = x.shape
    out = np.zeros((n, len(weight), h - 2, w - 2), np.int64)
    for o in range(len(weight)):
        for i in range(h - 2):
            for j in range(w - 2):
                window = x[:, :, i : i + 3, j : j + 3].reshape(n, c * 9)
                out[:, o, i, j] = window @ weight[o].reshape(-1) + bias[o]
    return out


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_quantized_convolution_is_integer_arithmetic(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(2, 3, 6, 6, generator=generator)
    conv = nn.Conv2d(3, 4, 3, bias=bits < 16)
    model = Does(lambda m, x: m.layer(x), conv)
    rule = {"op": "quantize", "target": ["weight", "activation"], "bits": bits, "first_last_bits": bits}
    net = trained(model, {"rules": [rule]}, x)
    frozen = fxc.freeze(net)
    inputs, outputs, weights = (net.get_submodule(f"compression.{n}_quantizer") for n in ("x", "layer", "layer.weight"))
    scale = weights.scale.view(-1, 1, 1, 1)
    integers = (quantize(x, inputs.scale, inputs.zero_point, inputs.grid) - inputs.zero_point).long().numpy()
    kernel = quantize(conv.weight.detach(), scale, torch.tensor(0), weights.grid).long().numpy()
    bias = np.zeros(4, np.int64)
    if conv.bias is not None:
        bias = np.round(conv.bias.detach().double().numpy() / (inputs.scale * weights.scale).double().numpy())
    sums = convolved(integers, kernel, bias.astype(np.int64))
    if bits <= 8:
        assert np.abs(sums).max() < 2**31
    values = sums.astype(np.float32) * (inputs.scale * weights.scale).numpy().reshape(-1, 1, 1)
    q = np.round(values / outputs.scale.numpy()) + outputs.zero_point.numpy()
    expected = (np.clip(q, 0, 2**bits - 1) - outputs.zero_point.numpy()).astype(np.float32) * outputs.scale.numpy()
    with torch.no_grad():
        assert np.array_equal(frozen(x).numpy(), expected)


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8, 12, 16]), st.booleans())
def test_fake_quantized_values_are_integers_times_the_scale(seed: int, bits: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = Grid(bits, signed, False)
    x = torch.randn(50, generator=generator) * 10
    scale = torch.rand((), generator=generator) + 0.01
    zero = torch.randint(grid.qmin, grid.qmax + 1, (), generator=generator, dtype=torch.int32)
    q = quantize(x, scale, zero, grid)
    assert torch.equal(q, q.round())
    assert bool(((q >= grid.qmin) & (q <= grid.qmax)).all())
    exact = np.clip(np.rint(x.numpy() / scale.numpy()) + int(zero), grid.qmin, grid.qmax)
    assert np.array_equal(q.numpy(), exact.astype(np.float32))


class Odd(nn.Module):
    """Batch norms that fold badly: gamma zero, negative, variance zero; a channel of zeros; tiny weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)
        with torch.no_grad():
            self.bn.weight[0], self.bn.weight[1] = 0.0, -0.7
            self.bn.running_var[2] = 0.0
            self.a.weight[3] = 0
            self.b.weight[4] *= 1e-7
            self.fc.weight[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        x = torch.relu(self.norm(self.b(x))) + x
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", ["noise", "zeros", "tiny", "constant", "huge"])
@pytest.mark.parametrize("range_", ["min-max", "mse", "entropy", {"quantile": [0.01, 0.99]}], ids=str)
def test_ten_steps_on_odd_data_stay_finite_and_export(kind: str, range_: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Odd()
    if kind == "tiny":
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1e-7)
    make = {"zeros": torch.zeros, "constant": torch.ones}.get(kind, torch.randn)
    factor = 1e6 if kind == "huge" else 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8 if kind == "huge" else 1e-3, weight_decay=1e-3)
    rules = [
        {"op": "quantize", "target": "weight", "bits": 8, "range": range_, "start": 1},
        {"op": "quantize", "target": "activation", "bits": 8, "range": range_, "start": 2},
    ]
    net = fxc.compress(model, {"rules": rules}, make(2, 3, 6, 6) * factor, total_steps=10, optimizer=optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        net(make(2, 3, 6, 6) * factor).square().mean().backward()
        optimizer.step()
    assert all(bool(t.isfinite().all()) for t in net.state_dict().values() if t.is_floating_point() and t.ndim)
    quantizers = [m for m in net.modules() if isinstance(m, fxc.quantizer.Quantizer)]
    assert all(bool((m.chosen()[0].isfinite() & (m.chosen()[0] > 0)).all()) for m in quantizers)
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx")
    assert found.ok
    assert all(o.trained <= 2 for o in found.outputs)
