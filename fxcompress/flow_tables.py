"""What operators without weights do to channels, as tables keyed like those in `operators.py`."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.operators import ADDS, AVERAGE_POOLS, MULS, POINTWISE

MOVES: frozenset[Any] = frozenset({
    torch.flatten, nn.Flatten, torch.reshape, "view", "contiguous", torch.permute, torch.transpose,
    torch.squeeze, torch.unsqueeze, torch.chunk, torch.split, torch.unbind, operator.getitem, nn.Identity, torch.stack,
    torch.movedim, "movedim", torch.swapaxes, "swapaxes", "expand", "expand_as", "clone", "unflatten", "detach",
    "float", F.pixel_shuffle, nn.PixelShuffle, F.pixel_unshuffle, nn.PixelUnshuffle, getattr, torch.t, "t",
    torch.clone,
})  # fmt: skip
"""What puts elements elsewhere: done with the labels themselves."""
SIZES: frozenset[Any] = frozenset({"size", "dim", "numel", "ndimension", getattr, len, operator.getitem})
"""What tells a tensor's shape, and takes it apart."""
ELEMENTWISE: frozenset[Any] = POINTWISE | {
    torch.abs, operator.neg, torch.neg, torch.exp, torch.sqrt, torch.clamp, "clamp", torch.erf, F.softplus, F.mish,
    F.leaky_relu, F.elu, F.selu, F.hardtanh, F.logsigmoid, F.softsign, torch.square, "square", "abs", "exp", "sqrt",
    torch.rsqrt, "rsqrt", torch.reciprocal, "reciprocal", torch.log, torch.sin, torch.cos, torch.sign, "sign", "neg",
    torch.pow, operator.pow, "pow", nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Hardtanh,
    nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Threshold, nn.RReLU, nn.Softshrink, nn.Hardshrink, F.celu,
}  # fmt: skip
"""Functions of one tensor, element by element."""
SUMS: frozenset[Any] = ADDS | {torch.sub, operator.sub, "sub", torch.maximum, torch.minimum}
PRODUCTS_BY_ELEMENT: frozenset[Any] = MULS | {torch.div, operator.truediv, "div"}
SPATIAL: frozenset[Any] = AVERAGE_POOLS | {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.adaptive_max_pool1d,
    F.adaptive_max_pool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, F.avg_pool1d, F.avg_pool3d, nn.AvgPool1d,
    nn.AvgPool3d, F.adaptive_avg_pool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d, F.interpolate, nn.Upsample,
    nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, F.pad,
}  # fmt: skip
"""What mixes or repeats places behind the channels, each channel for itself."""
REDUCTIONS: frozenset[Any] = frozenset({torch.mean, "mean", torch.sum, "sum", torch.amax, "amax"})
SHUFFLES: frozenset[Any] = frozenset({F.channel_shuffle, nn.ChannelShuffle})
GLUS: frozenset[Any] = frozenset({F.glu, nn.GLU})
ATTENTION: frozenset[Any] = frozenset({F.scaled_dot_product_attention})
