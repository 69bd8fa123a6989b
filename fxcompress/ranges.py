"""From values to a range, from a range to a scale: bounds, quantiles, least squared error, entropy; any float or a
power of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.grid import Grid, quantize

SHRINKS = 80
POWERS = 21  # the paper searches 2**-d for d = 0..20 (arXiv 2110.08271)
ENTROPY_BINS = 2048


@dataclass(frozen=True)
class Calibration:
    """How a scale follows from values: a rule's `range` by name, its quantiles, and its `scale`.

    `range` is "min-max", "moving-average" (which the observer takes; of one tensor the same), "mse", "entropy" or
    "quantile".
    """

    range: str = "min-max"
    scale: str = "float"
    quantiles: tuple[float, float] = (0.0, 1.0)


def scales(values: Tensor, counts: Tensor | None, grid: Grid, how: Calibration) -> tuple[Tensor, Tensor]:
    """Scale and zero point for each row of `values`.

    `values` is [C, N] float, `counts` [C, N] or None for all ones. Returns float32 [C] and int32 [C]; a scale is always
    finite and positive. Zero always lies on the grid.
    """
    values = values.detach().float().nan_to_num()
    if not values.shape[1]:
        values = values.new_zeros(values.shape[0], 1)
        counts = None
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    width = _width(low, high, grid)
    if grid.binary:
        return _positive(_mean_magnitude(values), width, grid), torch.zeros_like(low, dtype=torch.int32)
    saturates = how.range == "quantile" and how.scale == "power-of-two"
    if saturates:
        values = _saturated(values, counts, how)
    if how.range == "mse" or saturates:
        scale, zero_point = _least_squares(values, counts, _candidates(width, grid, how.scale), grid)
        revived = _positive(scale, width, grid)
        return revived, torch.where(revived == scale, zero_point, _zero_point(low, revived, grid))
    if how.range == "quantile":
        low, high = (
            q.clamp(max=0) if i == 0 else q.clamp(min=0) for i, q in enumerate(_quantiles(values, counts, how))
        )
    elif how.range == "entropy":
        low, high = _least_divergence(values, counts, low, high, grid)
    # A quantile or an average may leave nothing of a range that is not empty.
    cut = _width(low, high, grid)
    low, high = (
        torch.where(cut > 0, low, values.amin(1).clamp(max=0)),
        torch.where(cut > 0, high, values.amax(1).clamp(min=0)),
    )
    width = _width(low, high, grid)
    scale = _covering_power(width, grid) if how.scale == "power-of-two" else width / grid.levels
    scale = _positive(scale, width, grid)
    return scale, _zero_point(low, scale, grid)


def _covering_power(width: Tensor, grid: Grid) -> Tensor:
    """The least of the paper's powers of two that covers the range; 1 where none does."""
    powers = _powers(width)
    scale = torch.where(powers * grid.levels >= width * (1 - 1e-6), powers, torch.inf).amin(0)
    return torch.where(scale.isinf(), 1.0, scale)


def _powers(like: Tensor) -> Tensor:
    return (2.0 ** -torch.arange(POWERS, device=like.device))[:, None].expand(-1, len(like))


def _candidates(width: Tensor, grid: Grid, kind: str) -> Tensor:
    if kind == "power-of-two":
        return _powers(width)
    shrinks = 1 - torch.arange(SHRINKS, device=width.device) / (SHRINKS * 1.05)
    return shrinks[:, None] * _positive(width / grid.levels, width, grid)


def _least_squares(values: Tensor, counts: Tensor | None, candidates: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    best = torch.full_like(low, torch.inf, dtype=torch.float64)
    chosen, zero = candidates[0].clone(), _zero_point(low, candidates[0], grid)
    for scale in candidates:
        # A range that is cut keeps the proportion of its two sides, so that the zero point cuts both alike.
        shrunk = (scale * grid.levels / _width(low, high, grid).clamp(min=1e-38)).clamp(max=1)
        zero_point = _zero_point(low * shrunk, scale, grid)
        integers = quantize(values, scale[:, None], zero_point[:, None], grid) - zero_point[:, None]
        squared = (integers * scale[:, None] - values).double().square()
        total = (squared if counts is None else squared * counts).sum(1)
        better = total < best
        best = torch.where(better, total, best)
        chosen, zero = torch.where(better, scale, chosen), torch.where(better, zero_point, zero)
    return chosen, zero


def _quantiles(values: Tensor, counts: Tensor | None, how: Calibration) -> tuple[Tensor, Tensor]:
    """The values that the rule's two shares of all lie below, between neighbours in proportion."""
    ordered, order = values.sort(1)
    weights = torch.ones_like(ordered) if counts is None else counts.gather(1, order)
    below = weights.double().cumsum(1)
    total = below[:, -1:]
    # As of all values in order: the first at rank 0, the last at rank total - 1.
    ranks = torch.tensor(how.quantiles, dtype=torch.float64, device=values.device) * (total - 1).clamp(min=0)
    lower, upper = (
        ordered.gather(1, torch.searchsorted(below, rank, right=True).clamp(max=ordered.shape[1] - 1))
        for rank in (ranks.floor(), ranks.ceil())
    )
    low, high = torch.lerp(lower, upper, (ranks - ranks.floor()).float()).unbind(1)
    return low, high


def _saturated(values: Tensor, counts: Tensor | None, how: Calibration) -> Tensor:
    """Values clipped to the rule's quantiles; as they are in a row of which the quantiles leave nothing."""
    low, high = (q[:, None] for q in _quantiles(values, counts, how))
    low, high = low.clamp(max=0), high.clamp(min=0)
    return torch.where(low < high, values.clamp(low, high), values)


def _least_divergence(
    values: Tensor, counts: Tensor | None, low: Tensor, high: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Bounds, both shrunk alike, that lose least information: of the histogram as it is cut to them and the histogram
    that its levels can tell apart, the least Kullback-Leibler divergence."""
    if counts is None:
        values, counts = _histogram(values)
    mass = counts.double()
    best = torch.full_like(low, torch.inf, dtype=torch.float64)
    chosen = torch.ones_like(low)
    for shrink in (1 - torch.arange(SHRINKS, device=values.device) / (SHRINKS * 1.05)).tolist():
        scale = _positive(_width(low, high, grid) * shrink / grid.levels, _width(low, high, grid), grid)
        zero_point = _zero_point(low * shrink, scale, grid)[:, None]
        level = (quantize(values, scale[:, None], zero_point, grid) - grid.qmin).long()
        inside = (values >= (low * shrink)[:, None]) & (values <= (high * shrink)[:, None])
        divergence = _divergence(mass, level, inside, grid.qmax - grid.qmin + 1)
        better = divergence < best
        best = torch.where(better, divergence, best)
        chosen = torch.where(better, shrink, chosen)
    return low * chosen, high * chosen


def _divergence(mass: Tensor, level: Tensor, inside: Tensor, levels: int) -> Tensor:
    """KL divergence of each row's cut histogram from the one that spreads every level's mass over its filled bins."""
    filled = ((mass > 0) & inside).double()
    empty = mass.new_zeros(len(mass), levels)
    per_level = empty.scatter_add(1, level, mass * filled) / empty.scatter_add(1, level, filled).clamp(min=1)
    spread = per_level.gather(1, level) * filled
    # What is cut off is counted at the level it is cut to, in its bin nearest to the edge: by level, spread over bins.
    clipped = empty.scatter_add(1, level, mass * (1 - filled)) / empty.scatter_add(1, level, filled).clamp(min=1)
    reference = mass * filled + clipped.gather(1, level) * filled
    total = mass.sum(1, keepdim=True).clamp(min=1)
    p, q = reference / total, spread / spread.sum(1, keepdim=True).clamp(min=1)
    terms = torch.where(p > 0, p * (p.clamp(min=_UNSEEN) / q.clamp(min=_UNSEEN)).log(), 0.0).sum(1)
    lost = (1 - p.sum(1)).clamp(min=0)  # cut to levels where nothing else is
    return terms + lost * (lost.clamp(min=_UNSEEN) / _UNSEEN).log()


_UNSEEN = 1e-9
"""The probability given to what the cut histogram does not have."""


def _histogram(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as [C, ENTROPY_BINS] bin centres and counts."""
    reach = values.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    index = ((values / reach + 1) / 2 * ENTROPY_BINS).long().clamp(0, ENTROPY_BINS - 1)
    counts = values.new_zeros(len(values), ENTROPY_BINS).scatter_add(1, index, torch.ones_like(values))
    centres = (torch.arange(ENTROPY_BINS, device=values.device) + 0.5) / ENTROPY_BINS * 2 - 1
    return centres[None] * reach, counts


def _mean_magnitude(values: Tensor) -> Tensor:
    """The mean magnitude of what is not zero: the scale of least squared error where only signs are kept (arXiv
    1603.05279)."""
    return values.abs().sum(1) / (values != 0).sum(1).clamp(min=1)


def _width(low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    return torch.maximum(-low, high) if grid.symmetric else high - low


def _zero_point(low: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    if grid.symmetric:
        return torch.full_like(low, grid.centre, dtype=torch.int32)
    return (grid.qmin - torch.round(low / scale)).clamp(grid.qmin, grid.qmax).to(torch.int32)


def _positive(scale: Tensor, width: Tensor, grid: Grid) -> Tensor:
    """Finite, positive scales: a channel of zeros takes the largest scale of its tensor, a tensor of zeros a power of
    two that reaches to about 1.

    Any positive scale is exact for zeros. A large one would make the grid of the int32 bias coarse, a tiny one would
    make the bias overflow and saturate whatever is not zero later.
    """
    scale = torch.nan_to_num(scale, 0.0, torch.finfo(torch.float32).max / 65536, 0.0)
    usable = (scale >= torch.finfo(torch.float32).tiny) & (width > 0)
    fallback = torch.where(usable, scale, 0.0).amax()
    fallback = torch.where(fallback > 0, fallback, torch.full_like(fallback, 1 / (grid.levels + 1)))
    return torch.where(usable, scale, fallback)
