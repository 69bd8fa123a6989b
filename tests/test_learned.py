"""Learned scales: LSQ's and LSQ+'s gradients, kept positive, trained by the optimizer that was handed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ConvBnRelu, Mlp, image, rows, seeded
from hypothesis import given
from hypothesis import strategies as st

import fxcompress as fxc
from fxcompress.errors import ScheduleError
from fxcompress.grid import Grid
from fxcompress.learned import gradient_scale, learned_quantize, positive, zero_point_of
from fxcompress.quantizer import Plan, Quantizer

LEARNED = {
    "rules": [
        {"op": "quantize", "target": "weight", "bits": 4, "first_last_bits": 4, "scale": "learned", "start": 1},
        {"op": "quantize", "target": "activation", "bits": 8, "scale": "learned", "start": 2},
    ]
}
VALUES = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30)


@given(VALUES, st.floats(0.0625, 2.0, width=32), st.sampled_from([2, 3, 4, 8]), st.booleans())
def test_the_scale_has_lsqs_gradient(values: list[float], scale: float, bits: int, signed: bool) -> None:
    grid = Grid(bits, signed, True, narrow=signed)
    zero = torch.tensor(grid.centre, dtype=torch.int32)
    x, s = torch.tensor(values), torch.tensor(scale, requires_grad=True)
    learned_quantize(x, s, zero, None, grid, 0.5).sum().backward()
    steps = x / s.detach()
    q = steps.round() + zero
    inside = (q >= grid.qmin) & (q <= grid.qmax)
    expected = torch.where(inside, steps.round() - steps, q.clamp(grid.qmin, grid.qmax) - zero).sum() * 0.5
    torch.testing.assert_close(s.grad, expected, rtol=1e-5, atol=1e-4)


@given(VALUES, st.floats(0.0625, 2.0, width=32), st.floats(-4, 1, width=32))
def test_the_offset_has_lsq_pluss_gradient(values: list[float], scale: float, offset: float) -> None:
    grid = Grid(4, False, False)
    x, s, b = torch.tensor(values), torch.tensor(scale), torch.tensor(offset, requires_grad=True)
    zero = zero_point_of(b.detach(), s, grid)
    learned_quantize(x, s, zero, b, grid, 0.25).sum().backward()
    q = (x / s).round() + zero
    assert float(b.grad) == 0.25 * int(((q < 0) | (q > 15)).sum())


def test_gradients_are_scaled_as_the_paper_has_it() -> None:
    weight, activation = torch.zeros(8, 4, 3, 3), torch.zeros(2, 4, 5, 5)
    assert gradient_scale(weight, 1, False, Grid(4, True, True, True)) == pytest.approx((288 * 7) ** -0.5)
    assert gradient_scale(weight, 8, False, Grid(4, True, True, True)) == pytest.approx((36 * 7) ** -0.5)
    assert gradient_scale(activation, 1, True, Grid(8, False, False)) == pytest.approx((100 * 255) ** -0.5)


@given(st.floats(-100, 100, width=32))
def test_a_scale_is_positive_wherever_training_takes_it(value: float) -> None:
    assert float(positive(torch.tensor(value))) > 0


def test_an_offset_keeps_zero_on_the_grid() -> None:
    quantizer = Quantizer(Plan(Grid(8, False, False), learned=True))
    quantizer.enable()
    with torch.no_grad():
        quantizer.scale.fill_(-0.1)
        quantizer.offset.fill_(-0.33)
    scale, zero_point = quantizer.chosen()
    assert (float(scale.detach()), int(zero_point)) == (pytest.approx(0.1), 3)
    assert float(quantizer(torch.zeros(())).detach()) == 0.0


def stepped(net: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def test_the_optimizer_trains_scales_without_decay() -> None:
    model = seeded(ConvBnRelu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    net = fxc.compress(model, LEARNED, image(), total_steps=20, optimizer=optimizer)
    group = optimizer.param_groups[-1]
    assert group["weight_decay"] == 0
    learned = [p for name, p in net.named_parameters() if name.endswith(("scale", "offset"))]
    assert [id(p) for p in group["params"]] == [id(p) for p in learned]
    stepped(net, optimizer, image(), 3)
    before = [p.detach().clone() for p in learned]
    stepped(net, optimizer, image(), 3)
    moved = [not torch.equal(a, b) for a, b in zip(before, learned, strict=True)]
    assert moved.count(False) <= 2  # an activation that nothing saturates learns no offset


def test_what_was_learned_is_what_is_exported(tmp_path: Any) -> None:
    model = seeded(ConvBnRelu)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    net = fxc.compress(model, LEARNED, image(), total_steps=10, optimizer=optimizer)
    stepped(net, optimizer, image(), 10)
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx")
    assert found.ok
    frozen = fxc.freeze(net)
    scale, zero_point = net.compression.x_quantizer.chosen()
    assert torch.equal(frozen.compression.x_quantizer_constants.scale, scale)
    assert int(frozen.compression.x_quantizer_constants.zero_point) == int(zero_point)


def test_resuming_is_exact() -> None:
    def made() -> tuple[Any, torch.optim.Optimizer]:
        model = seeded(Mlp).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return fxc.compress(model, LEARNED, rows(), total_steps=10, optimizer=optimizer), optimizer

    (whole, first), (half, second), (rest, third) = made(), made(), made()
    stepped(whole, first, rows(), 10)
    stepped(half, second, rows(), 4)
    rest.load_state_dict(half.state_dict())
    third.load_state_dict(second.state_dict())
    stepped(rest, third, rows(), 6)
    assert all(torch.equal(v, rest.state_dict()[k]) for k, v in whole.state_dict().items())


def test_learned_scales_want_an_optimizer() -> None:
    with pytest.raises(ScheduleError, match=r"no optimizer to train them; .* pass optimizer="):
        fxc.compress(seeded(Mlp), LEARNED, rows(), total_steps=10)
