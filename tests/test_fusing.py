"""Pruner and quantizer as one: the same bits as one after the other, and as the formulas of the docs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxcompress as fxc
from fxcompress.fusing import fused, prune_and_quantize
from fxcompress.grid import Grid, fake_quantize
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Plan, Quantizer

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
    assert any(n.target is prune_and_quantize for n in fused(net.graph, net).nodes)
    assert not any(n.target is prune_and_quantize for n in net.graph.nodes)
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
