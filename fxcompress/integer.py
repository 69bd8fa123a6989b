"""Products on integer-valued operands, scaled afterwards: exact, so the order of additions cannot matter.

    y = float32(sum q_x q_w + q_b) * (s_x s_w)

Sums are kept in float32 where no sum can reach 2^24, else in float64 (exact to 2^53).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.grid import broadcast

Product = Callable[..., Tensor]


def _integer(function: Product, spatial: int | None) -> Product:
    """`function(x, weight, bias, *args)` on the integers behind `x` (on a grid of scale `x_scale`, any zero point).

    `spatial` is the number of axes behind the channels of the output, None where channels come last.
    """

    def product(
        x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[Tensor, Tensor], wide: bool, *args: Any
    ) -> Tensor:
        # Other devices may choose algorithms that are inexact on integers even in float32's exact range.
        dtype = torch.float64 if wide or x.device.type != "cpu" else torch.float32
        integers = torch.div(x, scales[0]).round_().to(dtype)
        total = function(integers, weight.to(dtype), None, *args)
        axis = total.ndim - 1 - (spatial or 0)
        on_grid = bias is not None and not bias.is_floating_point()
        if bias is not None and on_grid:
            total = total + broadcast(bias.to(dtype), axis, total.ndim)
        y = scaled(total, scales, axis)
        return y if bias is None or on_grid else y + broadcast(bias, axis, total.ndim)

    product.__name__ = product.__qualname__ = f"integer_{function.__name__}"
    product.__module__ = __name__
    return product


def scaled(sums: Tensor, scales: tuple[Tensor, Tensor], axis: int) -> Tensor:
    """float32 of integer-valued `sums` with channels along `axis`; `scales` are the input's [] and the weight's [] or
    [C]."""
    scale = scales[0] * per_output_channel(scales[1], sums.shape[axis])
    return sums.to(torch.float32) * broadcast(scale, axis if scale.ndim else None, sums.ndim)


def per_output_channel(scale: Tensor, channels: int) -> Tensor:
    """A weight's scales for each output channel: a grouped transposed convolution has the same ones in every group."""
    return scale.repeat(channels // len(scale)) if scale.ndim and len(scale) != channels else scale


integer_conv1d, integer_conv2d, integer_conv3d = _integer(F.conv1d, 1), _integer(F.conv2d, 2), _integer(F.conv3d, 3)
integer_conv_transpose1d = _integer(F.conv_transpose1d, 1)
integer_conv_transpose2d = _integer(F.conv_transpose2d, 2)
integer_conv_transpose3d = _integer(F.conv_transpose3d, 3)
integer_linear = _integer(F.linear, None)


def integer_matmul(x: Tensor, y: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    """`x @ y` on the integers behind two activations, exact in float64."""
    x_integers, y_integers = (torch.div(a, s).round_().double() for a, s in zip((x, y), scales, strict=True))
    return torch.matmul(x_integers, y_integers).to(torch.float32) * (scales[0] * scales[1])


INTEGER: dict[Any, Product] = {
    F.conv1d: integer_conv1d,
    F.conv2d: integer_conv2d,
    F.conv3d: integer_conv3d,
    F.conv_transpose1d: integer_conv_transpose1d,
    F.conv_transpose2d: integer_conv_transpose2d,
    F.conv_transpose3d: integer_conv_transpose3d,
    F.linear: integer_linear,
    torch.matmul: integer_matmul,
    operator.matmul: integer_matmul,
}


def needs_float64(weight: Tensor, bias: Tensor | None, axis: int, largest: int) -> bool:
    """Whether a sum of `weight`'s integers times inputs up to `largest` in magnitude can leave float32's exact
    integers."""
    sums = weight.movedim(axis, 0).flatten(1).double().abs().sum(1)
    bound = sums.max() * largest + (0 if bias is None else bias.double().abs().max())
    return bool(bound >= 2**24) if sums.numel() else False
