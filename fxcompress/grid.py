"""The integer grids of ONNX and the arithmetic on them: divide by the scale, round half to even, saturate.

q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        (ONNX QuantizeLinear)
y = (q - zero_point) * scale                                          (ONNX DequantizeLinear)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxcompress.kernels import fake_quantize_one, has_kernels, is_eager
from fxcompress.masking import divided, mask_, masked, product
from fxcompress.rounding import Rounding


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
    return rounded(torch.div(x.float(), scale), zero_point, grid)


def rounded(steps: Tensor, zero_point: Tensor | int, grid: Grid) -> Tensor:
    """The integers of so many steps, whose memory they take."""
    if torch.compiler.is_compiling():
        # Gradients of what an autograd.Function changed in place get lost in what torch 2.11 compiles.
        return (steps.round() + zero_point).clamp(grid.qmin, grid.qmax)
    return steps.round_().add_(zero_point).clamp_(grid.qmin, grid.qmax)


def from_grid(q: Tensor, zero_point: Tensor | int, scale: Tensor, like: Tensor) -> Tensor:
    """The values of integers, of the type of `like`; in their memory."""
    if torch.compiler.is_compiling():
        values = (q - zero_point) * scale  # as above, and so is a type that stays
        return values if values.dtype == like.dtype else values.to(like.dtype)
    if not isinstance(zero_point, int) or zero_point:
        q.sub_(zero_point)
    return q.mul_(scale).to(like.dtype)


def fake_quantize(  # noqa: PLR0913 - all that the gradient depends on
    x: Tensor, scale: Tensor, zero_point: Tensor | int, grid: Grid, mask: Tensor | None = None, is_dense: bool = False
) -> Tensor:
    """`x`, or `x * mask` if there is a mask, on the grid of `grid` and `scale`, with straight-through gradient.

    The gradient is one where `qmin <= round(x / scale) + zero_point <= qmax` and zero elsewhere, and where the mask is
    zero; if `is_dense` it is one there. `zero_point` is a number where that is known without a look at a tensor.
    """
    if not grid.binary and is_eager():
        how = Rounding(scale, zero_point, (grid.qmin, grid.qmax), mask, is_dense)
        if has_kernels(x, how):
            return fake_quantize_one(x, how)
    return _FakeQuantize.apply(x, scale, zero_point, grid, mask, is_dense)  # type: ignore[no-any-return]


class _FakeQuantize(torch.autograd.Function):
    """Each operator is one pass over memory, and all but the first work in the memory that it took.

    Nothing but the inputs is kept for the way back, which counts the steps again.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - as above
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Any, grid: Grid, mask: Tensor | None, is_dense: bool
    ) -> Tensor:
        ctx.is_known = isinstance(zero_point, int)
        ctx.save_for_backward(x, scale, None if ctx.is_known else zero_point, mask)
        ctx.zero_point, ctx.grid, ctx.is_dense = zero_point if ctx.is_known else None, grid, is_dense
        if grid.binary:
            q = torch.sign(x.float() if mask is None else product(x.float(), mask))
        else:
            # The sum is there for zero, too: it makes -0 a 0.
            q = rounded(divided(x.float(), scale, mask), zero_point, grid)
        return from_grid(q, zero_point, scale, x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale, zero_point, mask = ctx.saved_tensors
        # Where a mask has zeros the input is zero, which lies on the grid.
        q = divided(x.float(), scale, mask if ctx.is_dense else None)
        low, high = ctx.grid.qmin - 0.5, ctx.grid.qmax + 0.5
        if torch.compiler.is_compiling():
            q = q.round() + (ctx.zero_point if ctx.is_known else zero_point)
        elif ctx.is_known and leaves_at_half(ctx.grid, ctx.zero_point):
            low, high = low - ctx.zero_point, high - ctx.zero_point
        else:
            q = q.round_().add_(ctx.zero_point if ctx.is_known else zero_point)
        grad = _between(grads[0].float(), q, low, high)
        if mask is not None and not ctx.is_dense:
            grad = masked(grad, mask) if torch.is_grad_enabled() else mask_(grad, mask)
        return grad.to(grads[0].dtype), None, None, None, None, None


def leaves_at_half(grid: Grid, zero_point: int) -> bool:
    """Whether half a step beyond either end rounds to the even integer outside, so that nothing need be rounded."""
    return (grid.qmin - zero_point) % 2 == 1 and (grid.qmax - zero_point) % 2 == 1


def _between(grad: Tensor, q: Tensor, low: float, high: float) -> Tensor:
    """`grad` where `low < q < high`, zero elsewhere, in one pass; the memory of `q` may be used up."""
    if torch.compiler.is_compiling():
        # What is compiled for CPUs compares one at a time; `q` is whole, so either factor is zero or one.
        return grad * (q - (low - 0.5)).clamp(0, 1) * ((high + 0.5) - q).clamp(0, 1)
    if torch.is_grad_enabled():
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
