"""The two operators of a frozen graph that ONNX knows as QuantizeLinear and DequantizeLinear, as `torch.library` ops.

`torch.ops.fxcompress.quantize_dequantize(x, scale, zero_point, qmin, qmax)` puts an activation on its grid;
`torch.ops.fxcompress.dequantize(integers, scale, zero_point, axis, bits=0, block=0)` reads a stored weight or bias.
`torch.ops.fxcompress.global_average_pool(x)` is adaptive average pooling to one pixel, which runtimes have a kernel
for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxcompress.grid import broadcast


@torch.library.custom_op("fxcompress::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """float32 `x` on a per-tensor grid; `scale` float32 [], `zero_point` [] of the integer type that stores the
    tensor."""
    zero = zero_point.to(torch.float32)
    return torch.div(x, scale).round_().add_(zero).clamp_(qmin, qmax).sub_(zero).mul_(scale)


@torch.library.custom_op("fxcompress::dequantize", mutates_args=())
def dequantize(  # noqa: PLR0913 - an operator's schema
    integers: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, bits: int = 0, block: int = 0
) -> Tensor:
    """float32 of stored integers; `scale` float32 and `zero_point` of the integers' type (None: 0), [] or [C] along
    `axis`, or [C, N / block] for blocks along the last axis of [C, N] integers.

    `bits` is the width that is used of the integers' type, 0 for all of it: a file may have a narrower type.
    """
    along = axis if scale.ndim else None
    values = integers.to(torch.float32)
    if zero_point is not None:
        values = values - broadcast(zero_point.to(torch.float32), along, integers.ndim, block)
    return values * broadcast(scale, along, integers.ndim, block)


@torch.library.custom_op("fxcompress::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over the last two axes of [N, C, H, W], as [N, C, 1, 1]."""
    return torch.nn.functional.adaptive_avg_pool2d(x, 1)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(integers: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(integers, dtype=torch.float32)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], 1, 1))


def is_blockwise(dequantized: Any) -> bool:
    """Whether a `dequantize` node has a scale for each block along the last axis."""
    return len(dequantized.args) > 5 and bool(dequantized.args[5])


QUANTIZE_DEQUANTIZE = torch.ops.fxcompress.quantize_dequantize.default
DEQUANTIZE = torch.ops.fxcompress.dequantize.default
GLOBAL_AVERAGE_POOL = torch.ops.fxcompress.global_average_pool.default
