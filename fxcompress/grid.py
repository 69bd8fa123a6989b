"""The integer grids of ONNX and the arithmetic on them: divide by the scale, round half to even, saturate.

q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        (ONNX QuantizeLinear)
y = (q - zero_point) * scale                                          (ONNX DequantizeLinear)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The integers a quantizer may use: `bits` wide, signed or not, symmetric (one fixed zero point) or affine.

    A `narrow` grid leaves out the integer that has no opposite, so that all of it can be negated, as folding a batch
    norm does to weights: +-(2^(bits-1) - 1) if signed, 1 .. 2^bits - 1 if not. A `binary` grid knows the signs alone,
    -1 and 1, and leaves exact zeros (masked weights) zero.
    """

    bits: int
    signed: bool
    symmetric: bool
    narrow: bool = False
    binary: bool = False

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return (-int(2 ** (self.bits - 1)) if self.signed else 0) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return int(2 ** (self.bits - 1)) - 1 if self.signed else int(2**self.bits) - 1

    @property
    def centre(self) -> int:
        """The zero point of a symmetric grid: 0, or the middle of unsigned integers."""
        return 0 if self.signed else int(2 ** (self.bits - 1))

    @property
    def levels(self) -> int:
        """Steps from zero to the largest integer of a symmetric grid; from the smallest to the largest of an affine
        one."""
        return self.qmax - (self.centre if self.symmetric else self.qmin)

    @property
    def dtype(self) -> torch.dtype:
        """The integer type of torch that holds the grid."""
        wide = self.bits > 8
        if self.signed:
            return torch.int16 if wide else torch.int8
        return torch.uint16 if wide else torch.uint8


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Integers of `x` on `grid`, as a float32 tensor of `x`'s shape; `scale` and `zero_point` broadcast against `x`."""
    if grid.binary:
        return torch.sign(x.float())
    return torch.div(x.float(), scale).round_().add_(zero_point).clamp_(grid.qmin, grid.qmax)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """`x` on the grid of `grid` and `scale`, with straight-through gradient.

    The gradient is one where `qmin <= round(x / scale) + zero_point <= qmax` and zero elsewhere.
    """
    return _FakeQuantize.apply(x, scale, zero_point, grid)  # type: ignore[no-any-return]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = grid
        return quantize(x, scale, zero_point, grid).sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale, zero_point = ctx.saved_tensors
        q = torch.div(x.float(), scale).round_().add_(zero_point)
        # hardtanh's backward is one fused pass; its bounds are open, and q is whole, so half a step outside is exact.
        low, high = ctx.grid.qmin - 0.5, ctx.grid.qmax + 0.5
        grad = torch.ops.aten.hardtanh_backward(grads[0].float(), q, low, high)
        return grad.to(grads[0].dtype), None, None, None


def broadcast(values: Tensor, axis: int | None, ndim: int, block: int | None = None) -> Tensor:
    """Per-channel `values` of shape [C] as [1, .., C, .., 1] along `axis` of an `ndim`-dimensional tensor; those of
    blocks along the last axis, [C, N / block], as [C, N]."""
    if block:
        return values.repeat_interleave(block, -1)
    if axis is None:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.view(shape)
