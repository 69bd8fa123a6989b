"""What an activation's quantizer sees in its window: running bounds and, where a range wants one, a histogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BINS = 4096
DECAY = 0.9
"""Of the moving average: what the bounds keep at each batch, about the last ten batches count."""
HISTOGRAMS = frozenset({"mse", "quantile", "entropy"})
"""The ranges that are chosen from a histogram."""


class Observer(nn.Module):
    """Running minimum and maximum of an activation, or their moving averages, and its histogram.

    The histogram has BINS equal bins over [-reach, reach]; when a value lies outside, `reach` doubles until it fits and
    bins merge, so that it takes bounded memory, needs no second look at the data and never waits for the device.
    """

    low: Tensor
    high: Tensor
    histogram: Tensor
    reach: Tensor

    def __init__(self, range_: str) -> None:
        """`range_` is the rule's `range`, by name."""
        super().__init__()
        self.averages, self.keeps_histogram = range_ == "moving-average", range_ in HISTOGRAMS
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        if self.keeps_histogram:
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
        if self.averages:
            self.low.copy_(torch.where(self.low.isinf(), low, self.low * DECAY + low * (1 - DECAY)))
            self.high.copy_(torch.where(self.high.isinf(), high, self.high * DECAY + high * (1 - DECAY)))
            return
        torch.minimum(self.low, low, out=self.low)
        torch.maximum(self.high, high, out=self.high)
        if self.keeps_histogram:
            self._count(x.detach().float(), torch.maximum(-low, high))

    def _count(self, x: Tensor, largest: Tensor) -> None:
        self.widen(torch.ceil(torch.log2(largest / self.reach)).clamp_(min=0).nan_to_num_(0.0, 0.0, 0.0))
        index = torch.floor(x.flatten().nan_to_num() / self.reach * (BINS // 2)).clamp_(-BINS, BINS).long() + BINS // 2
        index.clamp_(0, BINS - 1)
        self.histogram.index_add_(0, index, torch.ones_like(index))

    def widen(self, doublings: Tensor) -> None:
        """Double the histogram's reach so many times."""
        centres = torch.arange(BINS, device=doublings.device) - BINS // 2 + 0.5
        merged = torch.floor(centres / 2**doublings).long() + BINS // 2
        self.histogram.copy_(torch.zeros_like(self.histogram).index_add_(0, merged, self.histogram))
        self.reach.mul_(2**doublings)

    def values(self) -> tuple[Tensor, Tensor]:
        """What was seen as [1, N] values and their [1, N] counts: its two bounds with a count of zero, and the bins'
        centres between them."""
        ends = torch.stack([self.low, self.high]).nan_to_num(0.0, 0.0, 0.0)[None]
        nothing = torch.zeros_like(ends, dtype=torch.int64)
        if not self.keeps_histogram:
            return ends, nothing
        centres = (torch.arange(BINS, device=ends.device) - BINS // 2 + 0.5) * self.reach / (BINS // 2)
        centres = torch.clamp(centres, ends[0, 0], ends[0, 1])[None]
        return torch.cat([ends, centres], 1), torch.cat([nothing, self.histogram[None]], 1)
