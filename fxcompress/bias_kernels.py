"""Rounding of biases on CPUs, all of a net's in one call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fxcompress.cpu_kernels import PLAIN

Tensors = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor]
"""Of one product its bias, or that of its batch norm; the norm's mean, variance and factor, and the product's own bias
beside it; the scales of its weight and of its input. What is None is that of a norm that does nothing."""
_COUNT, _BIAS = struct.Struct("@q"), struct.Struct("@10qf4x")  # as `bias_loops.BIAS`


def has_loop(products: Sequence[Tensors]) -> bool:
    """Whether all are of the types and sizes, and in the memory, that there is a loop for."""
    return all(map(_has_loop, products))


def _has_loop(product: Tensors) -> bool:
    *vectors, of_weight, of_input = product
    for t in product:
        if t is None:
            continue
        if type(t) not in PLAIN or t.dtype is not torch.float32 or not t.is_cpu:
            return False
        if not t.is_contiguous():
            return False
    n = product[0].numel()
    if of_input.numel() != 1 or n == 0 or n % of_weight.numel():
        return False
    return all(t is None or t.numel() == n for t in vectors)


def rounded(products: Sequence[Tensors], eps: Sequence[float]) -> tuple[Tensor, ...]:
    """The rounded biases, each of shape [channels], in one memory; `has_loop` of them."""
    counts = [tensors[0].numel() for tensors in products]
    zeros, ones = (make(max(counts), dtype=torch.float32, device="cpu") for make in (torch.zeros, torch.ones))
    joined = torch.empty(sum(counts), dtype=torch.float32, device="cpu")
    out, fields = joined.data_ptr(), []
    for (bias, mean, variance, gamma, own, *scales), n, least in zip(products, counts, eps, strict=True):
        statistics = zeros if mean is None else mean, ones if variance is None else variance
        others = ones if gamma is None else gamma, zeros if own is None else own
        at = map(Tensor.data_ptr, (bias, *statistics, *others, *scales))
        fields.append(_BIAS.pack(out, *at, n, scales[0].numel(), least))
        out += n * joined.itemsize
    _loop()(_COUNT.pack(len(fields)) + b"".join(fields))
    return torch.split_with_sizes(joined, counts)


@cache
def _loop() -> Any:
    from fxcompress.bias_loops import run

    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(run.address)
