"""Rounding to a grid whose scale, and offset if it is affine, are learned: LSQ (arXiv 1902.08153) and LSQ+ (arXiv
2004.09576)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxcompress.grid import Grid, from_grid, quantize

LEAST = torch.finfo(torch.float32).tiny


def positive(scale: Tensor) -> Tensor:
    """The scale that a learned one stands for: its magnitude, so that no step of an optimizer makes it negative."""
    return scale.abs().clamp(min=LEAST)


def zero_point_of(offset: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The zero point, int32, nearest to an offset: the value of the integer 0 (LSQ+'s beta)."""
    return torch.round(-offset / scale).clamp(grid.qmin, grid.qmax).to(torch.int32)


def gradient_scale(x: Tensor, scales: int, of_activation: bool, grid: Grid) -> float:
    """What LSQ multiplies a scale's gradient by: 1 / sqrt(N Q_P), N the elements that share the scale, of an activation
    those of one sample (section 2.2)."""
    elements = x[0].numel() if of_activation and x.ndim > 1 else x.numel()
    return float(1 / math.sqrt(max(elements / scales * grid.levels, 1)))


def learned_quantize(  # noqa: PLR0913 - all that the gradients depend on
    x: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor | None, grid: Grid, g: float
) -> Tensor:
    """`x` on `grid`, with gradients for `x`, for `scale` and, if there is one, for `offset`.

    `scale` (positive), `zero_point` and `offset` broadcast against `x`; `g` multiplies their gradients. With
    q = round(x / scale) + zero_point, and b the nearer of qmin and qmax where q lies outside:

        d y / d scale  = round(x / scale) - x / scale inside; outside b - zero_point, or b with an offset
        d y / d offset = 0 inside, 1 outside

    (LSQ, equation 3; LSQ+, equations 6 and 7.)
    """
    return _LearnedQuantize.apply(x, scale, zero_point, offset, grid, g)  # type: ignore[no-any-return]


class _LearnedQuantize(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - as above
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor | None, grid: Grid, g: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point, offset)
        ctx.grid, ctx.g = grid, g
        return from_grid(quantize(x, scale, zero_point, grid), zero_point, scale, x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale, zero_point, offset = ctx.saved_tensors
        grid, grad = ctx.grid, grads[0].float()
        steps = torch.div(x.float(), scale)
        rounded = steps.round()
        q = rounded + zero_point
        outside = (q < grid.qmin) | (q > grid.qmax)
        bound = q.clamp(grid.qmin, grid.qmax)
        inner = torch.sign(x.float()) - steps if grid.binary else rounded - steps
        by_scale = torch.where(outside, bound if offset is not None else bound - zero_point, inner)
        to_scale = (grad * by_scale * ctx.g).sum_to_size(scale.shape)
        to_offset = None if offset is None else (grad * outside * ctx.g).sum_to_size(offset.shape)
        to_x = grad.masked_fill(outside, 0.0).to(grads[0].dtype)
        return to_x, to_scale, None, to_offset, None, None
