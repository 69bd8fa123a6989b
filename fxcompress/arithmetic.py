"""Ways in which a runtime may add a quantized product's sums and clip a quantized tensor, the right one among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.grid import broadcast


@dataclass(frozen=True)
class Product:
    """A product of integers: `function(inputs, weight, None, *rest)`, plus `bias` along the channels.

    `inputs` (float64) are the input's integers less `zero_point`, which is of the type that stores them; `weight` is of
    the type that stores it, `bias` float64.
    """

    function: Callable[..., Tensor]
    inputs: Tensor
    zero_point: Tensor
    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...]

    def channel_axis(self, sums: Tensor) -> int:
        """The axis of the sums that the weight's output channels lie along."""
        return sums.ndim - 1 - (self.weight.ndim - 2)

    def with_bias(self, sums: Tensor) -> Tensor:
        """The sums, and the bias added."""
        return sums if self.bias is None else sums + broadcast(self.bias, self.channel_axis(sums), sums.ndim)


@dataclass(frozen=True)
class Arithmetic:
    """How products add, whether quantizers clip to their grid or only to the type that stores it, and which constants
    stand for the graph's, by name."""

    sums: Callable[[Product], Tensor]
    clips: bool = True
    constants: Mapping[str, Tensor] = field(default_factory=dict)


def exact_sums(product: Product) -> Tensor:
    """What the graph computes, whatever the weights and biases are."""
    return product.with_bias(product.function(product.inputs, product.weight.double(), None, *product.rest))


def wrapped_sums(product: Product) -> Tensor:
    """Products and bias in one int32, which wraps around."""
    return torch.remainder(exact_sums(product) + 2.0**31, 2.0**32) - 2.0**31


def pair_saturated_sums(product: Product) -> Tensor:
    """Each two neighbouring products of uint8 and int8 saturate in 16 bits before they are added, as on x86 processors
    without VNNI.

    Neighbours are those in a runtime's order: along the inputs of a linear layer, and of a 2-d convolution along the
    channels of a pixel and then its pixels. Other products, and those whose weights are too small for it, are exact.
    """
    if not _may_saturate(product):
        return exact_sums(product)
    zero = float(product.zero_point)
    if product.function is F.linear:
        return product.with_bias(_saturated(product.inputs + zero, product.weight.double(), zero))
    stride, padding, dilation, groups = product.rest
    padded = F.pad(product.inputs, (padding[1], padding[1], padding[0], padding[0])) + zero
    weight = product.weight.double()
    parts = []
    for image, kernel in zip(padded.chunk(groups, 1), weight.chunk(groups), strict=True):
        columns = F.unfold(image, kernel.shape[2:], dilation=dilation, stride=stride)
        pixels = columns.reshape(len(image), image.shape[1], -1, columns.shape[2]).permute(0, 3, 2, 1).flatten(2)
        parts.append(_saturated(pixels, kernel.permute(0, 2, 3, 1).flatten(1), zero).transpose(1, 2))
    shape = product.function(product.inputs[:1], weight, None, *product.rest).shape
    return product.with_bias(torch.cat(parts, 1).reshape(len(padded), -1, *shape[2:]))


EXACT = Arithmetic(exact_sums)
WRAPPED = Arithmetic(wrapped_sums)
PAIR_SATURATED = Arithmetic(pair_saturated_sums)
UNCLIPPED = Arithmetic(exact_sums, clips=False)


def _may_saturate(product: Product) -> bool:
    is_u8_s8 = (product.zero_point.dtype, product.weight.dtype) == (torch.uint8, torch.int8)
    is_linear = product.function is F.linear
    # Runtimes have another kernel, which adds in 32 bits, for one input channel a group.
    is_conv = product.function is F.conv2d and product.weight.shape[1] > 1 and not isinstance(product.rest[1], str)
    largest = 2 * 255 * int(product.weight.int().abs().max()) if product.weight.numel() else 0
    return is_u8_s8 and (is_linear or is_conv) and largest > torch.iinfo(torch.int16).max


def _saturated(inputs: Tensor, weight: Tensor, zero_point: float) -> Tensor:
    """[..., O] from `inputs` [..., K], with their zero point, and `weight` [O, K]."""
    bounds = torch.iinfo(torch.int16)
    x, w = (F.pad(t, (0, t.shape[-1] % 2)) for t in (inputs, weight))
    sums = torch.zeros(*x.shape[:-1], len(w), dtype=torch.float64)
    for k in range(0, x.shape[-1], 2):
        sums += (x[..., k : k + 2] @ w[:, k : k + 2].T).clamp_(bounds.min, bounds.max)
    return sums - zero_point * weight.sum(1)
