"""How the values of a quantized tensor lie on its grid: a histogram, and how many are clipped."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxcompress.acting import sources_of
from fxcompress.calls import bind, spread
from fxcompress.constants import evaluate
from fxcompress.dryrun import untouched
from fxcompress.graph import modules_of_type
from fxcompress.looking import looking
from fxcompress.module import CompressedModule
from fxcompress.quantizer import Quantizer

BINS = 48


@dataclass(frozen=True)
class ValueHistogram:
    """`counts` of values in BINS equal bins from `low` to `high`, in the tensor's units.

    The grid reaches from `grid_low` to `grid_high` (of the widest scale, where there are several); `clipped` values of
    `total` lie outside of theirs.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    grid_low: float
    grid_high: float
    clipped: int
    total: int


@torch.no_grad()
def value_histograms(net: CompressedModule, inputs: Any = None) -> dict[str, ValueHistogram]:
    """By path of each quantizer that is on: of weights as they are now, of activations in one forward of `inputs` (one
    batch as for `compress`, by default the example inputs) in evaluation mode, which leaves no trace."""
    sources = sources_of(net)
    found = {
        path: _histogram(quantizer, evaluate(net, sources[path]))
        for path, quantizer in modules_of_type(net, Quantizer)
        if path in sources and quantizer.is_enabled and not quantizer.of_activation
    }
    given = net.schedule.example_inputs if inputs is None else bind(net, inputs)
    args, kwargs = spread(inspect.signature(net.forward), given)

    def look(path: str, quantizer: Quantizer, x: Tensor) -> None:
        found[path] = _histogram(quantizer, x)

    with untouched(net), looking(net, look):
        net.eval()(*args, **kwargs)
    return found


def _histogram(quantizer: Quantizer, values: Tensor) -> ValueHistogram:
    x = values.detach().float().flatten()
    scale, zero_point = quantizer.chosen()
    grid = quantizer.grid
    ends = [(end - zero_point) * scale for end in (grid.qmin, grid.qmax)]
    grid_low, grid_high = float(ends[0].min()), float(ends[1].max())
    low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
    low, high = min(low, grid_low), max(high, grid_high)
    counts = torch.histc(x, BINS, low, high).long().tolist() if high > low else [x.numel()] + [0] * (BINS - 1)
    return ValueHistogram(low, high, tuple(counts), grid_low, grid_high, int(quantizer.clipped(values)), x.numel())
