"""From observed values to a range, from a range to a scale: min-max, least squared error, float or power of two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxcompress.grid import Grid, quantize

BINS = 4096
SHRINKS = 80
POWERS = 21  # the paper searches 2**-d for d = 0..20 (arXiv 2110.08271)


class Observer(nn.Module):
    """Running minimum and maximum of an activation and, for a least-squares search, its histogram.

    The histogram has BINS equal bins over [-reach, reach]; when a value lies outside, `reach` doubles until it fits and
    bins merge, so that it takes bounded memory, needs no second look at the data and never waits for the device.
    """

    low: Tensor
    high: Tensor
    histogram: Tensor
    reach: Tensor

    def __init__(self, keeps_histogram: bool) -> None:
        super().__init__()
        self.keeps_histogram = keeps_histogram
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        if keeps_histogram:
            self.register_buffer("histogram", torch.zeros(BINS, dtype=torch.int64))
            self.register_buffer("reach", torch.tensor(2.0**-20))

    def reset(self) -> None:
        """Forget what was seen."""
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)
        if self.keeps_histogram:
            self.histogram.zero_()
            self.reach.fill_(2.0**-20)

    @torch.no_grad()
    def forward(self, x: Tensor) -> None:
        """Look at one batch of any shape."""
        if not x.numel():
            return
        low, high = torch.aminmax(x.detach().float())
        torch.minimum(self.low, low, out=self.low)
        torch.maximum(self.high, high, out=self.high)
        if self.keeps_histogram:
            self._count(x.detach().float(), torch.maximum(-low, high))

    def _count(self, x: Tensor, largest: Tensor) -> None:
        doublings = torch.ceil(torch.log2(largest / self.reach)).clamp_(min=0).nan_to_num_(0.0, 0.0, 0.0)
        centres = torch.arange(BINS, device=x.device) - BINS // 2 + 0.5
        merged = torch.floor(centres / 2**doublings).long() + BINS // 2
        self.histogram.copy_(torch.zeros_like(self.histogram).index_add_(0, merged, self.histogram))
        self.reach.mul_(2**doublings)
        index = torch.floor(x.flatten().nan_to_num() / self.reach * (BINS // 2)).clamp_(-BINS, BINS).long() + BINS // 2
        index.clamp_(0, BINS - 1)
        self.histogram.index_add_(0, index, torch.ones_like(index))

    def values(self) -> tuple[Tensor, Tensor]:
        """What was seen as [1, N] values and their [N] counts: bin centres inside the seen range, and its two ends."""
        ends = torch.stack([self.low, self.high]).nan_to_num(0.0, 0.0, 0.0)
        if not self.keeps_histogram:
            return ends[None], torch.ones_like(ends, dtype=torch.int64)
        centres = (torch.arange(BINS, device=ends.device) - BINS // 2 + 0.5) * self.reach / (BINS // 2)
        centres = torch.clamp(centres, ends[0], ends[1])
        return torch.cat([ends, centres])[None], torch.cat([torch.ones_like(ends, dtype=torch.int64), self.histogram])


def scales(values: Tensor, counts: Tensor | None, grid: Grid, how: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Scale and zero point for each row of `values`.

    `values` is [C, N] float, `counts` [N] or None for all ones, `how` the rule's `range` and `scale`. Returns float32
    [C] and int32 [C]; a scale is always finite and positive. Zero always lies on the grid.
    """
    search, kind = how
    values = values.detach().float()
    if not values.shape[1]:
        values = values.new_zeros(values.shape[0], 1)
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    width = _width(low, high, grid)
    if search == "min-max":
        scale = _covering_power(width, grid) if kind == "power-of-two" else width / _levels(grid)
        scale = _positive(scale, width, grid)
        return scale, _zero_point(low, scale, grid)
    if kind == "power-of-two":
        candidates = (2.0 ** -torch.arange(POWERS, device=values.device))[:, None].expand(-1, len(low))
    else:
        shrinks = 1 - torch.arange(SHRINKS, device=values.device) / (SHRINKS * 1.05)
        candidates = shrinks[:, None] * _positive(width / _levels(grid), width, grid)
    scale, zero_point = _least_squares(values, counts, candidates, grid)
    revived = _positive(scale, width, grid)
    return revived, torch.where(revived == scale, zero_point, _zero_point(low, revived, grid))


def _covering_power(width: Tensor, grid: Grid) -> Tensor:
    """The least of the paper's powers of two that covers the range; 1 where none does."""
    powers = (2.0 ** -torch.arange(POWERS, device=width.device))[:, None].expand(-1, len(width))
    scale = torch.where(powers * _levels(grid) >= width * (1 - 1e-6), powers, torch.inf).amin(0)
    return torch.where(scale.isinf(), 1.0, scale)


def _least_squares(values: Tensor, counts: Tensor | None, candidates: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    best = torch.full_like(low, torch.inf, dtype=torch.float64)
    chosen, zero = candidates[0].clone(), _zero_point(low, candidates[0], grid)
    for scale in candidates:
        # A range that is cut keeps the proportion of its two sides, so that the zero point cuts both alike.
        shrunk = (scale * _levels(grid) / _width(low, high, grid).clamp(min=1e-38)).clamp(max=1)
        zero_point = _zero_point(low * shrunk, scale, grid)
        error = (quantize(values, scale[:, None], zero_point[:, None], grid) - zero_point[:, None]) * scale[
            :, None
        ] - values
        squared = error.double().square()
        total = (squared if counts is None else squared * counts).sum(1)
        better = total < best
        best = torch.where(better, total, best)
        chosen, zero = torch.where(better, scale, chosen), torch.where(better, zero_point, zero)
    return chosen, zero


def _width(low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    return torch.maximum(-low, high) if grid.symmetric else high - low


def _levels(grid: Grid) -> int:
    return grid.qmax - (grid.centre if grid.symmetric else grid.qmin)


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
    fallback = torch.where(fallback > 0, fallback, torch.full_like(fallback, 1 / (_levels(grid) + 1)))
    return torch.where(usable, scale, fallback)
