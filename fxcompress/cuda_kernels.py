"""Fake quantization on CUDA, one kernel a direction: PyTorch compiles the formulas when they are first called.

A function that only bounds its input, and a mask, take part and take no kernel of their own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fxcompress.rounding import Rounding

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


def forward(x: Tensor, how: Rounding) -> Tensor:
    """`x`, float32, rounded as `how` says."""
    kernel = forward_kernel(_is_known(how), how.mask is not None)
    return kernel(x, *_tensors(how), **_numbers(how))  # type: ignore[no-any-return]


def backward(grad: Tensor, x: Tensor, how: Rounding) -> Tensor:
    """The gradient of `x`."""
    kernel = backward_kernel(_is_known(how), how.mask is not None, how.is_dense)
    return kernel(grad, x, *_tensors(how), **_numbers(how))  # type: ignore[no-any-return]


def _is_known(how: Rounding) -> bool:
    return isinstance(how.zero_point, int)


def _tensors(how: Rounding) -> list[Tensor]:
    return [t for t in (how.scale, how.zero_point, how.mask) if isinstance(t, Tensor)]


def _numbers(how: Rounding) -> dict[str, float]:
    numbers = zip(("qmin", "qmax", "least", "most"), (*how.ends, *how.within), strict=True)
    known = {"zero_point": float(how.zero_point)} if _is_known(how) else {}
    return {name: float(number) for name, number in numbers} | known


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
