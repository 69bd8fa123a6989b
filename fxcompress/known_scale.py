"""Fake quantization with one scale whose value is known, as on CPUs, where reading it waits for nothing.

What rounds to an integer of the grid lies between two floats then, so that the gradient needs no rounding; an
activation function that only bounds its input, and a mask, take part in the rounding, with no pass over memory of
their own. All that depends on scale and mask alone is computed once, for as long as they stay.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxcompress.grid import Grid

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-float("inf"), float("inf"))
SHIFT = 1.5 * 2**23
"""Beside it float32 holds whole numbers only, those within 2^22: a sum with it is rounded, half to even."""
_SHIFT = torch.tensor(SHIFT)
_gradient_between = torch.ops.aten.hardtanh_backward


class Known:
    """What follows from a scale, a zero point and a mask as they are now, for tensors like `x`: float32, on a CPU.

    `by` is the scale, infinite where the mask is zero: what is divided by that is zero. The gradient is one between
    `least` and `most`, which are no farther than the bounds `within` (with zero between them), and where `ones`, the
    mask, has ones. `low` and `high` are the integers at the ends, plus `SHIFT`.
    """

    __slots__ = ("by", "high", "least", "low", "most", "ones", "scale", "shape", "sources", "strides", "versions")

    def __init__(
        self, x: Tensor, grid: Grid, within: Bounds, sources: tuple[Tensor, Tensor, Tensor | None], mask: Tensor | None
    ) -> None:
        """`sources` are the tensors that scale, zero point and `mask` come from."""
        self.sources, self.versions = sources, _versions(sources)
        self.shape, self.strides = x.shape, x.stride()
        scale, zero_point, _ = sources
        self.least, self.most, self.low, self.high = _ends(float(scale.numpy()), int(zero_point.numpy()), grid, within)
        self.scale = self.by = scale.clone()
        self.ones: Tensor | None = None
        if mask is not None:
            self.ones = torch.empty_like(x[:1], dtype=torch.uint8).copy_(mask)
            self.by = self.scale / self.ones

    def holds(self, x: Tensor, scale: Tensor, zero_point: Tensor, mask: Tensor | None) -> bool:
        """Whether nothing that it follows from has changed."""
        known = self.sources
        return (
            known[0] is scale and known[1] is zero_point and known[2] is mask
            and self.versions == _versions(known) and self.shape == x.shape and self.strides == x.stride()
        )  # fmt: skip


def fake_quantize_known(x: Tensor, known: Known) -> Tensor:
    """As `grid.fake_quantize`, of an `x` that its `Known` holds for."""
    return _OfKnownScale.apply(x, known)  # type: ignore[no-any-return]


class _OfKnownScale(torch.autograd.Function):
    """Four passes over memory forward, all but the first in memory of their own, and two on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, known: Known) -> Tensor:
        ctx.save_for_backward(x)
        ctx.known = known
        q = torch.div(x, known.by).add_(SHIFT) if known.ones is None else torch.addcdiv(_SHIFT, x, known.by)
        return q.clamp_(known.low, known.high).sub_(SHIFT).mul_(known.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,), known = ctx.saved_tensors, ctx.known
        grad = _gradient_between(grads[0], x, known.least, known.most)
        if known.ones is not None:
            grad = grad * known.ones if torch.is_grad_enabled() else grad.mul_(known.ones)
        return grad, None


def _versions(sources: tuple[Tensor, Tensor, Tensor | None]) -> tuple[int, int, int]:
    scale, zero_point, mask = sources
    return scale._version, zero_point._version, 0 if mask is None else mask._version


@lru_cache(maxsize=2**14)
def _ends(scale: float, zero_point: int, grid: Grid, within: Bounds) -> tuple[float, float, float, float]:
    """Between which two floats the gradient is one, and the least and the largest integer, shifted."""
    s, low, high = np.float32(scale), grid.qmin - zero_point, grid.qmax - zero_point
    with np.errstate(over="ignore"):
        ends = [float(np.clip(np.rint(np.float32(bound) / s), low, high)) for bound in within]
    least = max(within[0], _last_below(low, s))
    most = min(within[1], -_last_below(-high, s))
    return least, most, ends[0] + SHIFT, ends[1] + SHIFT


def _last_below(low: int, s: np.float32) -> float:
    """The largest float32 `x` with `round(x / s) < low`."""
    x = np.float32((low - 0.5) * float(s))
    while np.rint(x / s) >= low:
        x = np.nextafter(x, np.float32(-np.inf))
    while np.rint(np.nextafter(x, np.float32(np.inf)) / s) < low:
        x = np.nextafter(x, np.float32(np.inf))
    return float(x)
