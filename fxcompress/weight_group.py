"""Pruning and quantization of many weights at once.

A small weight takes longer to call for than to round. What is done to all of them goes operator by operator, each on
one weight after the other; with one autograd function for all, so that their gradients come when the last is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxcompress.cuda_kernels import has_kernels, quantized_weight, weight_gradient

_gradient_between = torch.ops.aten.hardtanh_backward


@dataclass(frozen=True)
class Rounding:
    """How a weight is rounded: its scales, spread against it; the integers at the ends of its grid, both odd, if the
    zero point is 0; and its mask as bytes, if it has one."""

    scale: Tensor
    low: int
    high: int
    mask: Tensor | None


def fake_quantize_all(weights: Sequence[Tensor], how: Sequence[Rounding]) -> tuple[Tensor, ...]:
    """`grid.fake_quantize` of each weight, float32."""
    return _Group.apply(how, *weights)  # type: ignore[no-any-return]


class _Group(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Sequence[Rounding], *weights: Tensor) -> tuple[Tensor, ...]:
        scales = [h.scale for h in how]
        ctx.set_materialize_grads(False)
        ctx.how = how
        ctx.save_for_backward(*weights, *scales, *(h.mask for h in how))
        if has_kernels(weights[0]):
            return tuple(
                quantized_weight(w, h.scale, h.mask, (h.low, h.high)) for w, h in zip(weights, how, strict=True)
            )
        q = [torch.clone(w) if h.mask is None else torch.mul(w, h.mask) for w, h in zip(weights, how, strict=True)]
        torch._foreach_div_(q, scales)
        torch._foreach_round_(q)
        torch._foreach_add_(q, 0.0)  # makes a 0 of -0
        for t, h in zip(q, how, strict=True):
            t.clamp_(h.low, h.high)
        torch._foreach_mul_(q, scales)
        return tuple(q)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        n, saved = len(grads), ctx.saved_tensors
        parts = [saved[i : i + n] for i in (0, n, 2 * n)]
        there = [i for i, grad in enumerate(grads) if grad is not None]
        weights, scales, masks = ([part[i] for i in there] for part in parts)
        all_of_them: list[Tensor | None] = [None] * n
        if has_kernels(weights[0]) and not torch.is_grad_enabled():
            for i, w, scale, mask in zip(there, weights, scales, masks, strict=True):
                all_of_them[i] = weight_gradient(grads[i], w, scale, mask, (ctx.how[i].low, ctx.how[i].high))
            return None, *all_of_them
        # Half a step beyond an odd end rounds to the even integer outside, so that nothing need be rounded.
        ends = [(ctx.how[i].low - 0.5, ctx.how[i].high + 0.5) for i in there]
        found = list(torch._foreach_div(weights, scales))
        for k, (i, (low, high)) in enumerate(zip(there, ends, strict=True)):
            found[k] = _between(grads[i], found[k], low, high)
        for k, mask in enumerate(masks):
            if mask is not None:
                found[k] = found[k] * mask if torch.is_grad_enabled() else found[k].mul_(mask)
        for k, i in enumerate(there):
            all_of_them[i] = found[k]
        return None, *all_of_them


def _between(grad: Tensor, steps: Tensor, low: float, high: float) -> Tensor:
    if torch.is_grad_enabled():
        return _gradient_between(grad, steps, low, high)  # type: ignore[no-any-return]
    return _gradient_between.grad_input(grad, steps, low, high, grad_input=steps)  # type: ignore[no-any-return]
