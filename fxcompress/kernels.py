"""Fake quantization in one pass over memory a direction, as autograd sees it, on the devices that have kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxcompress import cpu_kernels, cuda_kernels
from fxcompress.rounding import Rounding

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_eager() -> bool:
    """Whether what is called now is computed, and nobody records or replaces operators, who sees PyTorch's only."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


def has_kernels(x: Tensor, how: Rounding) -> bool:
    """Whether these kernels round `x` so, if it `is_eager`."""
    if type(x) not in cpu_kernels.PLAIN or x.dtype not in _FLOATS:
        return False
    if x.is_cpu:
        return cpu_kernels.has_layout(x, how)
    return x.is_cuda and torch.version.hip is None and how.scale is not None


def fake_quantize_one(x: Tensor, how: Rounding) -> Tensor:
    """`x`, of any floating type, rounded in float32; `has_kernels` of it."""
    if x.is_cuda:
        return _OnCUDA.apply(x, how)  # type: ignore[no-any-return]
    if x.dtype is torch.float32:
        return _OnCPU.apply(x, how, how.overwrites)  # type: ignore[no-any-return]
    return _OnCPU.apply(x.float(), how, True).to(x.dtype)  # type: ignore[no-any-return]


class _OnCPU(torch.autograd.Function):
    """What it does between two convolutions costs more than the loops: as few calls as can be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Rounding, overwrites: bool) -> Tensor:
        out, keep = alias(x) if overwrites else torch.empty_like(x), None
        if ctx.needs_input_grad[0]:
            keep = torch.empty_like(x, dtype=torch.uint8)
            ctx.save_for_backward(keep)
        cpu_kernels.run((cpu_kernels.rounded(x, how, out, keep),), x.numel())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (keep,), grad = ctx.saved_tensors, grads[0]
        if torch.is_grad_enabled():  # a second derivative takes the factor as it is
            return grad * keep, None, None
        keep = dense(keep)
        grad = laid_out(grad, keep)
        out = torch.empty_like(grad)
        cpu_kernels.run((cpu_kernels.gated(grad, keep, out),), grad.numel(), is_gate=True)
        return out, None, None


def alias(x: Tensor) -> Tensor:
    """The same memory, but no view of `x` to autograd."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x)  # type: ignore[call-overload, no-any-return]


def dense(saved: Tensor) -> Tensor:
    """What was saved for the way back, without the gaps that hooks on saved tensors may bring."""
    is_so = saved.is_contiguous() or (saved.ndim == 4 and saved.is_contiguous(memory_format=torch.channels_last))
    return saved if is_so else saved.contiguous()


def laid_out(t: Tensor, like: Tensor) -> Tensor:
    """`t` as float32 with the strides of a dense tensor, as the loops take it."""
    if t.dtype is torch.float32 and t.stride() == like.stride():
        return t
    return torch.empty_like(like, dtype=torch.float32).copy_(t)


class _OnCUDA(torch.autograd.Function):
    """Nothing but the input is kept for the way back, which counts the steps again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Rounding) -> Tensor:
        ctx.how = how
        # What rounding depends on must be as it was, so that a change in between is an error.
        ctx.save_for_backward(x, *(t for t in (how.of, how.zero_point, how.mask) if isinstance(t, Tensor)))
        return cuda_kernels.forward(x.float(), how).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, *_), grad = ctx.saved_tensors, grads[0].float()
        if torch.is_grad_enabled():  # a second derivative takes the factor as it is
            gradient = grad * cuda_kernels.backward(torch.ones_like(grad), x.detach().float(), ctx.how)
        else:
            gradient = cuda_kernels.backward(grad, x.float(), ctx.how)
        return gradient.to(grads[0].dtype), None
