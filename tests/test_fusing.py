"""Pruner and quantizer as one: the same bits as one after the other, and as the formulas of the docs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import fxcompress as fxc
from fxcompress.errors import InputError
from fxcompress.fusing import fused
from fxcompress.grid import Grid, fake_quantize
from fxcompress.joint_calls import QuantizedActivation, QuantizedWeights
from fxcompress.known_scale import UNBOUNDED, Bounds, Known, _ends, fake_quantize_known
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Plan, Quantizer
from fxcompress.weight_group import Rounding, fake_quantize_all

GRIDS = [
    *(Grid(bits, True, True, narrow=True) for bits in (2, 4, 8, 16)),
    *(Grid(bits, False, False) for bits in (2, 5, 8, 16)),
    Grid(8, True, True),
    Grid(8, True, False),
    Grid(8, False, True),
    Grid(4, False, True, narrow=True),
]
SPEC = "P0.5(w,f) -> Q8(w,f)"


def simple(x: Tensor, mask: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Value and gradient factor by the formulas, one operator after the other."""
    q = torch.round(x.float() * mask / scale) + zero_point
    y = (torch.clamp(q, grid.qmin, grid.qmax) - zero_point) * scale
    return y.to(x.dtype), (q >= grid.qmin) & (q <= grid.qmax)


def bits(t: Tensor) -> bytes:
    return t.detach().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


@st.composite
def cases(draw: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | int, Grid]:
    """A tensor full of ties and of values beyond the grid, a mask, a scale and a zero point of a weight or an
    activation."""
    torch.manual_seed(draw(st.integers(0, 999)))
    grid, is_weight = draw(st.sampled_from(GRIDS)), draw(st.booleans())
    shape = draw(st.tuples(*[st.integers(1, 5)] * 4))
    scale = torch.rand((shape[0], 1, 1, 1) if is_weight else ()) + 2**-9
    steps = torch.randint(-2 * 2**grid.bits, 2 * 2**grid.bits, shape) / draw(st.sampled_from([1, 2, 3]))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    x = (steps * scale).to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    mask = torch.rand(shape if is_weight else shape[1:]) > 0.5
    zero: Tensor | int = grid.centre if grid.symmetric else draw(st.integers(grid.qmin, grid.qmax))
    zero = zero if grid.symmetric and draw(st.booleans()) else torch.tensor(zero, dtype=torch.int32)
    return x.to(memory_format=layout), mask, scale, zero, grid


@given(cases(), st.booleans())
def test_values_and_gradients_are_those_of_the_formulas(case: Any, is_dense: bool) -> None:
    x, mask, scale, zero, grid = case
    expected, inside = simple(x, mask, scale, torch.as_tensor(zero), grid)
    x, gradient = x.requires_grad_(), torch.randn(x.shape).to(x.dtype)
    y = fake_quantize(x, scale, zero, grid, mask, is_dense)
    assert bits(y) == bits(expected)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last) or not x.is_contiguous(memory_format=torch.channels_last)
    [found] = torch.autograd.grad(y, x, gradient)
    assert torch.equal(found, gradient * inside * (True if is_dense else mask))
    everything = torch.ones_like(mask)
    bare = fake_quantize(x, scale, zero, grid)
    assert bits(bare) == bits(fake_quantize(x, scale, zero, grid, everything))
    [found] = torch.autograd.grad(bare, x, gradient)
    assert torch.equal(found, gradient * simple(x.detach(), everything, scale, torch.as_tensor(zero), grid)[1])


WITHIN = [UNBOUNDED, (0.0, torch.inf), (0.0, 6.0), (-3.0, 0.0), (-0.5, 0.25)]


@given(cases(), st.sampled_from(WITHIN), st.booleans())
def test_a_known_scale_gives_the_same_bits(case: Any, within: Bounds, has_mask: bool) -> None:
    x, mask, scale, zero, grid = case
    x, scale, zero = x.float(), scale.flatten()[0], torch.as_tensor(zero, dtype=torch.int32)
    mask = mask if has_mask and mask.ndim < x.ndim else torch.ones(x.shape[1:], dtype=torch.bool)
    x = x.requires_grad_()
    known = Known(x, grid, within, (scale, zero, None), mask if has_mask else None)
    bounded = x if within == UNBOUNDED else torch.nn.functional.hardtanh(x, *within)
    expected = fake_quantize(bounded, scale, zero, grid, mask)
    found = fake_quantize_known(x, known)
    assert bits(found) == bits(expected)
    gradient = torch.randn(x.shape)
    assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)))


@given(st.floats(1e-30, 1e30), st.sampled_from(GRIDS), st.integers(0, 2**16))
def test_the_gradient_ends_where_rounding_leaves_the_grid(scale: float, grid: Grid, zero: int) -> None:
    zero_point = min(max(zero + grid.qmin, grid.qmin), grid.qmax)
    s = np.float32(scale)
    least, most, *_ = _ends(float(s), zero_point, grid, UNBOUNDED)
    beside = np.array([np.nextafter(np.float32(end), np.float32(to)) for end, to in ((least, np.inf), (most, -np.inf))])
    inside, outside = np.rint(beside / s) + zero_point, np.rint(np.array([least, most], np.float32) / s) + zero_point
    assert inside.tolist() == [grid.qmin, grid.qmax]
    assert outside[0] < grid.qmin
    assert outside[1] > grid.qmax


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=5), st.integers(0, 99))
def test_weights_together_are_what_each_is_alone(shapes: list[tuple[int, bool, bool]], seed: int) -> None:
    torch.manual_seed(seed)
    grid = Grid(4, True, True, narrow=True)
    weights = [torch.randn(n, 3, 1, 2).requires_grad_() for n, *_ in shapes]
    scales = [torch.rand(n, 1, 1, 1) / 4 + 0.05 for n, *_ in shapes]
    masks = [torch.rand(n, 3, 1, 2) > 0.5 if has_mask else None for n, has_mask, _ in shapes]
    how = [Rounding(s, -7, 7, None if m is None else m.view(torch.uint8)) for s, m in zip(scales, masks, strict=True)]
    found = fake_quantize_all(weights, how)
    for w, s, m, y, (_, _, is_used) in zip(weights, scales, masks, found, shapes, strict=True):
        expected = fake_quantize(w, s, 0, grid, m)
        assert bits(y) == bits(expected)
        w.wanted = torch.autograd.grad(expected.square().sum(), w)[0] if is_used else None  # type: ignore[attr-defined]
    used = [y.square().sum() for y, (*_, is_used) in zip(found, shapes, strict=True) if is_used]
    if used:
        sum(used).backward()  # type: ignore[union-attr]
    for w in weights:
        assert (w.grad is None) == (w.wanted is None)  # type: ignore[attr-defined]
        assert w.grad is None or torch.equal(w.grad, w.wanted)  # type: ignore[attr-defined]


def test_weights_together_have_a_second_derivative() -> None:
    w, g = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True]] * 2)
    (y,) = fake_quantize_all([w], [Rounding(torch.full((2, 1), 0.1), -7, 7, mask.view(torch.uint8))])
    [first] = torch.autograd.grad(y, w, g, create_graph=True)
    [second] = torch.autograd.grad(first.sum(), g)
    assert torch.equal(second, ((w.detach() / 0.1).round().abs() <= 7).float() * mask)


@pytest.mark.parametrize("what", ["scale", "zero_point", "mask"])
def test_what_is_written_from_outside_counts_at_once(what: str) -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    net(x)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(getattr(module, what, None), Tensor) and module.of_activation:
                getattr(module, what).copy_(getattr(module, what) * (2 if what == "scale" else 0))
    assert torch.equal(net(x), apart(net)(x))


def test_a_frozen_weight_gets_no_gradient_and_the_others_do() -> None:
    net = compressed()
    first = next(iter(net.parameters())).requires_grad_(False)
    first.grad = None
    net.zero_grad()
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    assert first.grad is None
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_what_writes_in_place_and_is_seen_is_called_alone() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.last = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = self.relu(y)
            return self.last(z) + y.sum()  # of what the function left

    torch.manual_seed(0)
    net = on(fxc.compress(Seen(), SPEC, torch.randn(4, 3, 8, 8), total_steps=10))
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net(x), apart(net)(x))


def test_values_beyond_all_bounds_saturate() -> None:
    x = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 1e30, 0.0, -0.0, -1e-30] * 5, requires_grad=True)
    grid, mask = Grid(8, True, True, narrow=True), torch.ones(40, dtype=torch.bool)
    y = fake_quantize(x, torch.tensor(1e-3), 0, grid, mask)
    expected, inside = simple(x.detach(), mask, torch.tensor(1e-3), torch.tensor(0), grid)
    assert bits(y) == bits(expected)
    y.sum().backward()
    assert torch.equal(x.grad, inside.float())  # type: ignore[arg-type]


def test_a_second_derivative_is_that_of_a_factor() -> None:
    x, g = torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
    mask, scale, grid = torch.arange(6) < 4, torch.tensor(0.01), Grid(8, False, False)
    zero = torch.tensor(128, dtype=torch.int32)
    [first] = torch.autograd.grad(fake_quantize(x, scale, zero, grid, mask), x, g, create_graph=True)
    [second] = torch.autograd.grad(first.sum(), g)
    assert torch.equal(second, (simple(x.detach(), mask, scale, zero, grid)[1] & mask).float())


def on(net: Any) -> Any:
    for _ in range(10):
        net(torch.randn(4, 3, 8, 8)).sum().backward()
        net.schedule.step()
    return net


def compressed(spec: str = SPEC) -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    return on(fxc.compress(nn.Sequential(*layers), spec, torch.randn(4, 3, 8, 8), total_steps=10))


def apart(net: Any) -> Any:
    """The same net with its pruners and quantizers called in turn: somebody looks at each."""
    twin = copy.deepcopy(net)
    for module in twin.modules():
        if isinstance(module, (Pruner, Quantizer)):
            module.register_forward_hook(lambda *_: None)
    return twin


def test_a_net_computes_what_it_computes_one_after_the_other() -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    twin = apart(net)
    run = [type(n.target) for n in fused(net.graph, net).nodes]
    assert run.count(QuantizedWeights) == 1
    assert run.count(QuantizedActivation) == 4
    ys = [one(x) for one in (net, twin)]
    assert torch.equal(*ys)
    for one, y in zip((net, twin), ys, strict=True):
        one.zero_grad()
        (y**2).sum().backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_whoever_looks_at_a_module_sees_what_it_is_called_on() -> None:
    net, seen = compressed(), []
    quantizer = next(m for m in net.modules() if isinstance(m, Quantizer) and not m.of_activation)
    pruner = next(m for m in net.modules() if isinstance(m, Pruner) and not m.of_activation)
    quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.randn(4, 3, 8, 8))
    assert torch.equal(seen[0] == 0, ~pruner.mask)


def test_a_pruner_that_others_read_is_called_alone() -> None:
    root = nn.Module()
    root.pruner = Pruner((2,), (2,))
    root.quantizer = Quantizer(Plan(Grid(8, True, True)), (2,))
    graph = torch.fx.Graph()
    pruned = graph.call_module("pruner", (graph.placeholder("x"),))
    quantized = graph.call_module("quantizer", (pruned,))
    graph.output((pruned, quantized))
    assert str(fused(graph, root)) == str(graph)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_either_way(dtype: torch.dtype) -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype):
        assert torch.equal(net(x), apart(net)(x))


def test_channels_last_stays() -> None:
    net = compressed().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    assert net(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), net(x.contiguous()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_recompute_the_same(reentrant: bool) -> None:
    net = compressed().eval()
    grads = []
    for call in (net, lambda x: checkpoint(net, x, use_reentrant=reentrant)):
        net.zero_grad()
        (call(torch.ones(4, 3, 8, 8, requires_grad=True)) ** 2).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_in_place_on_a_quantizer_that_is_off_is_seen_by_who_reads_its_input() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return self.relu(y.mul(1.5)) + y

    torch.manual_seed(0)
    net = on(fxc.compress(Seen(), SPEC, torch.randn(4, 3, 8, 8), total_steps=10))
    for name, module in net.named_modules():
        if isinstance(module, Quantizer) and "mul" in name:
            module.release()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net(x), apart(net)(x))


def test_tensors_that_count_no_changes_compute_the_same() -> None:
    net, x = compressed().eval(), torch.randn(4, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_tensors_without_data_leave_nothing_behind() -> None:
    net, x = compressed().eval(), torch.randn(4, 3, 8, 8)
    expected = apart(net)(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(x)).shape == expected.shape
    assert torch.equal(net(x), expected)


def test_data_parallel_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="train with DistributedDataParallel"):
        compressed()._replicate_for_data_parallel()
