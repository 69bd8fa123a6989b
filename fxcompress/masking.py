"""Products with a mask of zeros and ones, in vectorized passes over memory of their own.

A product of floats and bools is one scalar at a time on a CPU, and so is turning bools to floats; bytes are turned to
floats, and floats multiplied, many at a time. A mask's memory is bytes of zero and one, so it is read as such.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxcompress import cpu_kernels
from fxcompress.kernels import has_kernels, is_eager
from fxcompress.rounding import Rounding

CHUNK = 2**18
"""About how many elements are multiplied at once, where bytes have to be made floats."""


def masked(x: Tensor, mask: Tensor, is_dense: bool = False) -> Tensor:
    """`x * mask`; `mask` is bool and broadcasts against `x`. If `is_dense`, the gradient is as if there were none."""
    return _Masked.apply(x, mask, is_dense)  # type: ignore[no-any-return]


def product(x: Tensor, mask: Tensor) -> Tensor:
    """`x * mask` in memory of its own, laid out as `x` is."""
    if torch.compiler.is_compiling():
        return x * mask
    if _has_loop(x, how := Rounding(None, mask=mask)):
        out = torch.empty_like(x)
        cpu_kernels.run([cpu_kernels.rounded(x, how, out)], x.numel())
        return out
    ones = ones_of(x, mask)
    return ones.mul_(x) if mask.shape == x.shape else x * ones


def _has_loop(x: Tensor, how: Rounding) -> bool:
    return x.is_cpu and x.dtype is torch.float32 and is_eager() and has_kernels(x, how)


def divided(x: Tensor, by: Tensor, mask: Tensor | None) -> Tensor:
    """`x / by`, or `x * mask / by`, in memory of its own."""
    if mask is None:
        return torch.div(x, by)
    if mask.shape == x.shape or by.ndim or torch.compiler.is_compiling():
        return product(x, mask).div_(by)
    # By infinity where the mask is zero: zeros of the same signs in one pass less over all samples.
    return torch.div(x, torch.div(by, ones_of(x, mask)))


def ones_of(x: Tensor, mask: Tensor) -> Tensor:
    """The mask as zeros and ones of `x`'s type, laid out as `x` or as a sample of it where it is as large."""
    ones = mask.view(torch.uint8)
    if mask.shape == x.shape:
        return torch.empty_like(x).copy_(ones)
    return torch.empty_like(x[:1]).copy_(ones) if mask.shape == x.shape[1:] else ones.to(x.dtype)


def mask_(x: Tensor, mask: Tensor) -> Tensor:
    """Multiply `x`, in place."""
    if torch.compiler.is_compiling():
        return x * mask
    if _has_loop(x, how := Rounding(None, mask=mask)):
        cpu_kernels.run([cpu_kernels.rounded(x, how, x)], x.numel())
        return x
    if mask.shape != x.shape:
        return x.mul_(ones_of(x, mask))
    ones = mask.view(torch.uint8)
    if x.numel() <= CHUNK:
        return x.mul_(ones)
    rows = max(1, len(x) * CHUNK // x.numel())
    # The bytes become floats in memory that the next part takes again.
    for start in range(0, len(x), rows):
        x[start : start + rows].mul_(ones[start : start + rows])
    return x


class _Masked(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, is_dense: bool) -> Tensor:
        return product(x, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mask, ctx.is_dense = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return grads[0] if ctx.is_dense else masked(grads[0], mask), None, None
