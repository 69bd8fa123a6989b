"""The integer grids of ONNX and the arithmetic on them: divide by the scale, round half to even, saturate.

q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        (ONNX QuantizeLinear)
y = (q - zero_point) * scale                                          (ONNX DequantizeLinear)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxcompress.masking import divided, mask_, masked, product


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


def fake_quantize(  # noqa: PLR0913 - all that the gradient depends on
    x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, mask: Tensor | None = None, is_dense: bool = False
) -> Tensor:
    """`x`, or `x * mask` if there is a mask, on the grid of `grid` and `scale`, with straight-through gradient.

    The gradient is one where `qmin <= round(x / scale) + zero_point <= qmax` and zero elsewhere, and where the mask is
    zero; if `is_dense` it is one there.
    """
    return _FakeQuantize.apply(x, scale, zero_point, grid, mask, is_dense)  # type: ignore[no-any-return]


class _FakeQuantize(torch.autograd.Function):
    """Each pass over memory is one operator, and all but the first work in the memory that it took.

    Nothing but the inputs is kept for the way back, which counts the steps again.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - as above
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, mask: Tensor | None, is_dense: bool
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point, mask)
        ctx.grid, ctx.is_dense = grid, is_dense
        if grid.binary:
            q = torch.sign(x.float() if mask is None else product(x.float(), mask))
        else:
            q = divided(x.float(), scale, mask).round_().add_(zero_point).clamp_(grid.qmin, grid.qmax)
        return q.sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale, zero_point, mask = ctx.saved_tensors
        # Where a mask has zeros the input is zero, which lies on the grid.
        q = divided(x.float(), scale, mask if ctx.is_dense else None).round_().add_(zero_point)
        grad = within(grads[0].float(), q, ctx.grid)
        if mask is not None and not ctx.is_dense:
            grad = masked(grad, mask) if torch.is_grad_enabled() else mask_(grad, mask)
        return grad.to(grads[0].dtype), None, None, None, None, None


def within(grad: Tensor, q: Tensor, grid: Grid) -> Tensor:
    """`grad` where `q`, which is whole and used up, lies on the grid, and zero elsewhere."""
    # hardtanh's backward is one fused pass; its bounds are open, so half a step outside is exact.
    low, high = grid.qmin - 0.5, grid.qmax + 0.5
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.ops.aten.hardtanh_backward(grad, q, low, high)  # type: ignore[no-any-return]
    return torch.ops.aten.hardtanh_backward.grad_input(grad, q, low, high, grad_input=q)  # type: ignore[no-any-return]


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
