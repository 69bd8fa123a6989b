"""Pruner and quantizer in one pass over memory: the bits of operators, and the formulas of the docs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress import cpu_kernels
from fxcompress import grid as grids
from fxcompress.grid import Grid, fake_quantize
from fxcompress.kernels import fake_quantize_one, has_kernels
from fxcompress.rounding import UNBOUNDED, Bounds, Rounding

GRIDS = [
    *(Grid(bits, True, True, narrow=True) for bits in (2, 4, 8, 16)),
    *(Grid(bits, False, False) for bits in (2, 5, 8, 16)),
    Grid(8, True, True),
    Grid(8, True, False),
    Grid(8, False, True),
    Grid(4, False, True, narrow=True),
]


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
    x = (steps * scale).clamp(-6e4, 6e4).to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
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


@given(cases(), st.sampled_from(WITHIN), st.booleans(), st.booleans())
def test_one_pass_gives_the_bits_of_operators(case: Any, within: Bounds, has_mask: bool, is_dense: bool) -> None:
    x, mask, scale, zero, grid = case
    ends, is_dense = (grid.qmin, grid.qmax), is_dense and within == UNBOUNDED
    mask = mask if has_mask else None
    x = x.requires_grad_()
    bounded = x if within == UNBOUNDED else torch.nn.functional.hardtanh(x, *within)
    expected = grids._FakeQuantize.apply(bounded, scale, zero, grid, mask, is_dense)
    how = Rounding(scale, zero, ends, mask, is_dense, within)
    assert has_kernels(x, how)
    found = fake_quantize_one(x, how)
    assert bits(found) == bits(expected)
    gradient = torch.randn(x.shape).to(x.dtype)
    assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)))


@given(
    st.permutations(range(4)), st.sampled_from([None, 0, 1, 2, 3]), st.sampled_from([(4,), (3,), (2, 3), (1, 2, 3)]),
    st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_one_pass_serves_every_dense_layout(
    order: list[int], axis: int | None, covered: tuple[int, ...], threads: int, is_affine: bool
) -> None:
    """Scales along any axis, masks that cover axes whole, memory in any order; shared among threads."""
    torch.manual_seed(0)
    shape, grain = (2, 3, 4, 5), cpu_kernels.GRAIN
    x = torch.randn([shape[i] for i in order]).permute([order.index(i) for i in range(4)]).requires_grad_()
    along = [n if i == axis else 1 for i, n in enumerate(shape)]
    scale = torch.rand(along) / 9 + 0.1 if axis is not None else torch.tensor(0.2)
    zero = torch.randint(-3, 3, scale.shape, dtype=torch.int32) if is_affine else 0
    of_sample = [1 if i in covered else n for i, n in enumerate(shape)][1:]
    mask = torch.rand(of_sample) > 0.5
    expected = grids._FakeQuantize.apply(x, scale, zero, Grid(4, True, False), mask, False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cpu_kernels.GRAIN = 8
    try:
        how = Rounding(scale, zero, (-8, 7), mask)
        assert has_kernels(x, how)
        found = fake_quantize_one(x, how)
        gradient = torch.randn(shape)
        gradients = [torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)]
    finally:
        torch.set_num_threads(before)
        cpu_kernels.GRAIN = grain
    assert bits(found) == bits(expected)
    assert found.stride() == x.stride()
    assert torch.equal(*gradients)


def test_no_kernel_for_memory_with_gaps_or_repeats() -> None:
    scale = torch.tensor(0.1)
    how = Rounding(scale, 0, (-128, 127))
    assert not has_kernels(torch.ones(4, 4)[:, ::2], how)
    assert not has_kernels(torch.ones(4, 1).expand(4, 4), how)
    assert not has_kernels(torch.empty(0, 3), how)
    assert not has_kernels(torch.ones(4, 4), Rounding(torch.rand(4, 4), 0, (-128, 127)))
    for x in (torch.randn(4, 4)[:, ::2], torch.randn(4, 1).expand(4, 4), torch.empty(0, 3)):
        grid = Grid(8, True, True)
        assert bits(fake_quantize(x, scale, 0, grid)) == bits(
            simple(x, torch.ones(x.shape), scale, torch.tensor(0), grid)[0]
        )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -0.0])
@pytest.mark.parametrize("has_mask", [True, False])
def test_what_is_no_number_shows(bad: float, has_mask: bool) -> None:
    x, scale, grid = torch.full((2, 40), bad), torch.tensor(0.1), Grid(8, True, True)
    mask = torch.arange(40) % 2 > 0 if has_mask else None
    expected = grids._FakeQuantize.apply(x, scale, 0, grid, mask, False)
    assert bits(fake_quantize(x, scale, 0, grid, mask)) == bits(expected)


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


def test_scales_and_masks_of_other_types_or_memory_are_not_misread() -> None:
    x, grid = torch.randn(4, 8), Grid(8, True, True)
    assert not has_kernels(x, Rounding(torch.tensor(0.1).half(), 0, (-128, 127)))
    assert not has_kernels(x, Rounding(torch.rand(8, 1)[::2], 0, (-128, 127)))
    assert not has_kernels(x, Rounding(torch.tensor(0.1), torch.tensor(1.0), (-128, 127)))
    how = Rounding(torch.tensor(0.1), 0, (-128, 127), mask=torch.ones(4, 8, dtype=torch.bool))
    fake_quantize_one(x, how)
    how.scale.data, how.mask.data = torch.tensor(0.5), torch.arange(32).view(4, 8) % 2 > 0  # type: ignore[union-attr]
    assert has_kernels(x, how)
    assert bits(fake_quantize_one(x, how)) == bits(fake_quantize(x, torch.tensor(0.5), 0, grid, how.mask))


def test_what_is_infinite_is_bounded_before_it_is_masked() -> None:
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0]] * 2)
    mask, scale = torch.tensor([False, False, True, True]), torch.tensor(0.1)
    found = fake_quantize_one(x, Rounding(scale, 0, (0, 255), mask, within=(0.0, 6.0)))
    assert bits(found) == bits(fake_quantize(torch.nn.functional.relu6(x), scale, 0, Grid(8, False, False), mask))
