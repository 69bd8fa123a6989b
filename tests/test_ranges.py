"""Scales from ranges: they cover or they minimise the squared error, and are always finite and positive."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.grid import Grid, fake_quantize
from fxcompress.observer import Observer
from fxcompress.quantizer import Plan, Quantizer
from fxcompress.ranges import Calibration, scales

ACTIVATION, WEIGHT = Grid(8, False, False), Grid(8, True, True, True)
HOWS = [
    Calibration(r, s, (0.01, 0.99))
    for r, s in itertools.product(["min-max", "mse", "quantile", "entropy"], ["float", "power-of-two"])
]


def error(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> float:
    return float((fake_quantize(x, scale[:, None], zero[:, None], grid) - x).double().square().sum())


def test_min_max_of_weights_is_exact_at_both_ends() -> None:
    weight = torch.tensor([[-1.0, 0.5], [0.1, 0.2]])
    scale, zero = scales(weight, None, WEIGHT, Calibration("min-max", "float"))
    assert torch.equal(scale, torch.tensor([1.0, 0.2]) / 127)
    assert zero.tolist() == [0, 0]


def test_min_max_of_an_activation_keeps_zero_on_the_grid() -> None:
    scale, zero = scales(torch.tensor([[1.0, 5.0]]), None, ACTIVATION, Calibration("min-max", "float"))
    assert (float(scale), int(zero)) == (pytest.approx(5 / 255), 0)
    scale, zero = scales(torch.tensor([[-1.0, 3.0]]), None, ACTIVATION, Calibration("min-max", "float"))
    assert (float(scale), int(zero)) == (pytest.approx(4 / 255), 64)


@pytest.mark.parametrize("grid", [Grid(3, True, True, True), Grid(4, False, False)])
def test_least_squares_is_better_than_min_max(grid: Grid) -> None:
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)).pow(3)
    x = x if grid.signed else x.abs()
    errors = [error(x, *scales(x, None, grid, Calibration(how)), grid) for how in ("min-max", "mse")]
    assert errors[1] < 0.97 * errors[0]


def test_power_of_two_takes_the_best_of_the_papers_21() -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    scale, zero = scales(x, None, WEIGHT, Calibration("mse", "power-of-two"))
    for row in range(3):
        tried = {d: error(x[row : row + 1], torch.tensor([2.0**-d]), zero[:1], WEIGHT) for d in range(21)}
        assert float(scale[row]) == 2.0 ** -min(tried, key=tried.__getitem__)


def test_power_of_two_with_quantiles_is_the_best_for_the_clipped_values() -> None:
    x = torch.randn(1, 9000, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 1000.0
    assert float(scales(x, None, WEIGHT, Calibration("min-max", "power-of-two"))[0]) == 1
    scale, zero = scales(x, None, WEIGHT, Calibration("quantile", "power-of-two", (0.001, 0.999)))
    clipped = x.clamp(*x.quantile(torch.tensor([0.001, 0.999])).tolist())
    tried = {d: error(clipped, torch.tensor([2.0**-d]), zero, WEIGHT) for d in range(21)}
    assert float(scale) == 2.0 ** -min(tried, key=tried.__getitem__)


def test_power_of_two_that_covers() -> None:
    scale, _ = scales(torch.tensor([[-1.0, 0.9]]), None, WEIGHT, Calibration("min-max", "power-of-two"))
    assert float(scale) == 2**-6


@given(
    st.lists(st.floats(allow_nan=False, width=32), max_size=8),
    st.sampled_from(HOWS),
    st.sampled_from([ACTIVATION, WEIGHT]),
)
def test_scales_are_finite_and_positive_whatever_was_seen(values: list[float], how: Calibration, grid: Grid) -> None:
    rows = torch.stack([torch.tensor(values), torch.zeros(len(values))])
    scale, zero = scales(rows, None, grid, how)
    assert bool((scale.isfinite() & (scale > 0)).all())
    assert bool(((zero >= grid.qmin) & (zero <= grid.qmax)).all())


def test_a_dead_channel_takes_the_scale_of_the_largest() -> None:
    scale, _ = scales(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), None, WEIGHT, Calibration("min-max", "float"))
    assert float(scale[0]) == float(scale[1]) == pytest.approx(2 / 127)


def test_the_histogram_grows_without_losing_counts() -> None:
    observer = Observer("mse")
    batches = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) * 10**i for i in range(3)]
    for batch in batches:
        observer(batch)
    values, counts = observer.values()
    everything = torch.cat(batches)
    assert int(counts.sum()) == 3000
    assert (float(observer.low), float(observer.high)) == (float(everything.min()), float(everything.max()))
    width = 2 * float(observer.reach) / 4096
    mean = float((values * counts).sum() / 3000)
    assert mean == pytest.approx(float(everything.mean()), abs=width)


def test_a_quantizer_before_any_batch_is_still_finite() -> None:
    quantizer = Quantizer(Plan(ACTIVATION, Calibration("mse")))
    quantizer.calibrate()
    assert float(quantizer.scale) == 1 / 256
    assert bool(quantizer(torch.randn(4)).isfinite().all())


@given(st.integers(0, 5), st.sampled_from([(0.0, 1.0), (0.0001, 0.9999), (0.1, 0.8)]))
def test_quantiles_of_weights_are_those_of_torch(seed: int, quantiles: tuple[float, float]) -> None:
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(seed))
    low, high = torch.quantile(x, torch.tensor(quantiles), dim=1)
    scale, zero = scales(x, None, ACTIVATION, Calibration("quantile", "float", quantiles))
    torch.testing.assert_close(scale, (high - low) / 255)
    assert torch.equal(zero, -torch.round(low / scale).int())


def test_quantiles_of_activations_need_no_second_look() -> None:
    batches = [torch.randn(4000, generator=torch.Generator().manual_seed(i)).exp() for i in range(8)]
    observer = Observer("quantile")
    for batch in batches:
        observer(batch)
    scale, _ = scales(*observer.values(), ACTIVATION, Calibration("quantile", "float", (0.0001, 0.9999)))
    exact = torch.quantile(torch.cat(batches), 0.9999)
    assert float(scale) * 255 == pytest.approx(float(exact), abs=2 * float(observer.reach) / 2048)
    assert float(observer.high) > 1.4 * float(exact)


def test_a_moving_average_forgets() -> None:
    observer = Observer("moving-average")
    for high in (100.0, *[1.0] * 60):
        observer(torch.tensor([-high, high]))
    assert float(observer.high) == pytest.approx(1.0 + 99 * 0.9**60, rel=1e-4)
    assert float(observer.low) == -float(observer.high)


def test_entropy_cuts_a_long_tail_and_keeps_what_has_none() -> None:
    generator = torch.Generator().manual_seed(0)
    tailed = torch.cat([torch.randn(20000, generator=generator), torch.tensor([40.0, -40.0])])[None]
    even = torch.rand(1, 20000, generator=generator) * 2 - 1
    cut, _ = scales(tailed, None, WEIGHT, Calibration("entropy"))
    kept, _ = scales(even, None, WEIGHT, Calibration("entropy"))
    assert float(cut) * 127 < 12
    assert float(kept) * 127 > 0.9


def test_binary_weights_are_signs_times_their_mean_magnitude_and_masked_ones_stay_zero() -> None:
    grid = Grid(2, True, True, True, binary=True)
    x = torch.tensor([[0.5, -1.5, 0.0, 1e-9]])
    scale, zero = scales(x, None, grid, Calibration("mse"))
    assert float(scale) == pytest.approx(2 / 3)
    signs = fake_quantize(x, scale[:, None], zero[:, None], grid) / scale
    assert signs.tolist() == [[1.0, -1.0, 0.0, 1.0]]


def test_ternary_weights_have_the_least_squared_error_of_three_levels() -> None:
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(2))
    grid = Grid(2, True, True, True)
    scale, zero = scales(x, None, grid, Calibration("mse"))
    assert float(scale) == pytest.approx(1.224, abs=0.06)  # of a normal distribution (arXiv 1605.04711)
    assert sorted(set((fake_quantize(x, scale[:, None], zero[:, None], grid) / scale).flatten().tolist())) == [-1, 0, 1]


def test_blocks_have_a_scale_each() -> None:
    plan = Plan(Grid(4, True, True, True), block=2)
    quantizer = Quantizer(plan, (2, 4))
    weight = torch.tensor([[7.0, 1.0, 14.0, -2.0], [0.7, 0.1, 0.0, 0.0]])
    quantizer.calibrate(weight)
    assert quantizer.scale.shape == (2, 2)
    torch.testing.assert_close(quantizer.scale[:, 0], torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(quantizer(weight), weight)
