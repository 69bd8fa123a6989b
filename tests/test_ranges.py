"""Scales from ranges: they cover or they minimise the squared error, and are always finite and positive."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.grid import Grid, fake_quantize
from fxcompress.quantizer import Quantizer
from fxcompress.ranges import Observer, scales

ACTIVATION, WEIGHT = Grid(8, False, False), Grid(8, True, True, True)
HOWS = list(itertools.product(["min-max", "mse"], ["float", "power-of-two"]))


def error(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> float:
    return float((fake_quantize(x, scale[:, None], zero[:, None], grid) - x).double().square().sum())


def test_min_max_of_weights_is_exact_at_both_ends() -> None:
    weight = torch.tensor([[-1.0, 0.5], [0.1, 0.2]])
    scale, zero = scales(weight, None, WEIGHT, ("min-max", "float"))
    assert torch.equal(scale, torch.tensor([1.0, 0.2]) / 127)
    assert zero.tolist() == [0, 0]


def test_min_max_of_an_activation_keeps_zero_on_the_grid() -> None:
    scale, zero = scales(torch.tensor([[1.0, 5.0]]), None, ACTIVATION, ("min-max", "float"))
    assert (float(scale), int(zero)) == (pytest.approx(5 / 255), 0)
    scale, zero = scales(torch.tensor([[-1.0, 3.0]]), None, ACTIVATION, ("min-max", "float"))
    assert (float(scale), int(zero)) == (pytest.approx(4 / 255), 64)


@pytest.mark.parametrize("grid", [Grid(3, True, True, True), Grid(4, False, False)])
def test_least_squares_is_better_than_min_max(grid: Grid) -> None:
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)).pow(3)
    x = x if grid.signed else x.abs()
    errors = [error(x, *scales(x, None, grid, (how, "float")), grid) for how in ("min-max", "mse")]
    assert errors[1] < 0.97 * errors[0]


def test_power_of_two_takes_the_best_of_the_papers_21() -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    scale, zero = scales(x, None, WEIGHT, ("mse", "power-of-two"))
    for row in range(3):
        tried = {d: error(x[row : row + 1], torch.tensor([2.0**-d]), zero[:1], WEIGHT) for d in range(21)}
        assert float(scale[row]) == 2.0 ** -min(tried, key=tried.__getitem__)


def test_power_of_two_that_covers() -> None:
    scale, _ = scales(torch.tensor([[-1.0, 0.9]]), None, WEIGHT, ("min-max", "power-of-two"))
    assert float(scale) == 2**-6


@given(
    st.lists(st.floats(allow_nan=False, width=32), max_size=8),
    st.sampled_from(HOWS),
    st.sampled_from([ACTIVATION, WEIGHT]),
)
def test_scales_are_finite_and_positive_whatever_was_seen(
    values: list[float], how: tuple[str, str], grid: Grid
) -> None:
    rows = torch.stack([torch.tensor(values), torch.zeros(len(values))])
    scale, zero = scales(rows, None, grid, how)
    assert bool((scale.isfinite() & (scale > 0)).all())
    assert bool(((zero >= grid.qmin) & (zero <= grid.qmax)).all())


def test_a_dead_channel_takes_the_scale_of_the_largest() -> None:
    scale, _ = scales(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), None, WEIGHT, ("min-max", "float"))
    assert float(scale[0]) == float(scale[1]) == pytest.approx(2 / 127)


def test_the_histogram_grows_without_losing_counts() -> None:
    observer = Observer(keeps_histogram=True)
    batches = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) * 10**i for i in range(3)]
    for batch in batches:
        observer(batch)
    values, counts = observer.values()
    everything = torch.cat(batches)
    assert int(counts.sum()) == 3002
    assert (float(observer.low), float(observer.high)) == (float(everything.min()), float(everything.max()))
    width = 2 * float(observer.reach) / 4096
    mean = float((values[0, 2:] * counts[2:]).sum() / 3000)
    assert mean == pytest.approx(float(everything.mean()), abs=width)


def test_a_quantizer_before_any_batch_is_still_finite() -> None:
    quantizer = Quantizer(ACTIVATION, ("mse", "float"))
    quantizer.calibrate()
    assert float(quantizer.scale) == 1 / 256
    assert bool(quantizer(torch.randn(4)).isfinite().all())
