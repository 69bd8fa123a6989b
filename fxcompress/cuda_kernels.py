"""Fake quantization on CUDA, one kernel a direction: PyTorch compiles the formulas when they are first called.

A function that only bounds its input, and a mask, take part and take no kernel of their own. Half precision is computed
in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

INFINITY = float("inf")
_FORWARD = """
template <typename T> T {name}({tensors}, {numbers}) {{
  T bounded = x < least ? least : (x > most ? most : x);
  T q = rint(bounded {masked} / scale) + zero_point;
  q = q < qmin ? qmin : (q > qmax ? qmax : q);
  return (q - zero_point) * scale;
}}"""
_BACKWARD = """
template <typename T> T {name}({tensors}, {numbers}) {{
  T q = rint(x {seen} / scale) + zero_point;
  return (x <= least || x >= most || q < qmin || q > qmax) ? T(0) : grad {masked};
}}"""


def has_kernels(x: Tensor) -> bool:
    """Whether these kernels run for `x` as it is called now."""
    if not x.is_cuda or torch.version.hip is not None:
        return False
    return type(x) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()


def fake_quantize_cuda(  # noqa: PLR0913 - as grid.fake_quantize
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    ends: tuple[int, int],
    mask: Tensor | None = None,
    is_dense: bool = False,
    within: tuple[float, float] = (-INFINITY, INFINITY),
) -> Tensor:
    """`grid.fake_quantize` of `x` bounded to `within`, where the gradient is zero at the bounds and beyond.

    The grid has the integers from the first of `ends` to the last.
    """
    numbers = _numbers(ends, within)
    if isinstance(zero_point, int):
        numbers["zero_point"], zero_point = float(zero_point), None  # type: ignore[assignment]
    return _OnCuda.apply(x, scale, zero_point, mask, is_dense, numbers)  # type: ignore[no-any-return]


class _OnCuda(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - as above
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Any, mask: Any, is_dense: bool, numbers: dict[str, float]
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point, mask)
        ctx.is_dense, ctx.numbers = is_dense, numbers
        kernel = forward_kernel(zero_point is None, mask is not None)
        return kernel(x.float(), *_there(scale, zero_point, mask), **numbers).to(x.dtype)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale, zero_point, mask = ctx.saved_tensors
        kernel = backward_kernel(zero_point is None, mask is not None, ctx.is_dense)
        rest, grad = _there(scale, zero_point, mask), grads[0].float()
        if torch.is_grad_enabled():  # a second derivative takes the factor as it is
            found = grad * kernel(torch.ones_like(grad), x.detach().float(), *rest, **ctx.numbers)
        else:
            found = kernel(grad, x.float(), *rest, **ctx.numbers)
        return found.to(grads[0].dtype), *[None] * 5


def quantized_weight(w: Tensor, scale: Tensor, mask: Tensor | None, ends: tuple[float, float]) -> Tensor:
    """A float32 weight, or `w * mask`, on a grid whose zero point is 0."""
    kernel = forward_kernel(True, mask is not None)
    return kernel(w, *_there(scale, mask), **_numbers(ends), zero_point=0.0)  # type: ignore[no-any-return]


def weight_gradient(grad: Tensor, w: Tensor, scale: Tensor, mask: Tensor | None, ends: tuple[float, float]) -> Tensor:
    """The gradient of `quantized_weight`."""
    kernel = backward_kernel(True, mask is not None, False)
    return kernel(grad, w, *_there(scale, mask), **_numbers(ends), zero_point=0.0)  # type: ignore[no-any-return]


def _numbers(ends: tuple[float, float], within: tuple[float, float] = (-INFINITY, INFINITY)) -> dict[str, float]:
    return {"least": within[0], "most": within[1], "qmin": float(ends[0]), "qmax": float(ends[1])}


def _there(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


@cache
def forward_kernel(is_known: bool, has_mask: bool) -> Any:
    """Of x, scale, zero point if it is not `is_known` as a number, and mask if there is one; and of the numbers."""
    masked = "* mask" if has_mask else ""
    return _kernel(_FORWARD, f"fake_quantize_{is_known:d}{has_mask:d}", ["x"], (is_known, has_mask), masked=masked)


@cache
def backward_kernel(is_known: bool, has_mask: bool, is_dense: bool) -> Any:
    """Of a gradient and what `forward_kernel` is of."""
    name = f"fake_quantize_backward_{is_known:d}{has_mask:d}{is_dense:d}"
    on_x, on_grad = ("* mask" if has_mask and is_dense is on else "" for on in (True, False))
    return _kernel(_BACKWARD, name, ["grad", "x"], (is_known, has_mask), seen=on_x, masked=on_grad)


def _kernel(code: str, name: str, first: list[str], what: tuple[bool, bool], **parts: str) -> Any:
    is_known, has_mask = what
    tensors = [*first, "scale", *([] if is_known else ["zero_point"]), *(["mask"] if has_mask else [])]
    numbers = ["least", "most", "qmin", "qmax", *(["zero_point"] if is_known else [])]
    typed = {"tensors": tensors, "numbers": numbers}
    source = code.format(name=name, **{k: ", ".join(f"T {n}" for n in names) for k, names in typed.items()}, **parts)
    return torch.cuda.jiterator._create_jit_fn(source, **dict.fromkeys(numbers, 0.0))
