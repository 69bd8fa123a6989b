"""Masks of channels become zeros of what yields the channels."""

from __future__ import annotations

import pytest
import torch
from helpers import ConvBnConv, after, check_pass, check_unchanged, image, seeded, trained
from torch import nn
from torch.fx import GraphModule

import fxcompress as fxc
from fxcompress.errors import PassError
from fxcompress.frozen import _FROZEN
from fxcompress.passes import FoldMasks
from fxcompress.pipeline import run
from fxcompress.render import render

CHANNELS = {"op": "prune", "target": "weight", "sparsity": 0.5, "pattern": "channel", "ramp": "one-shot"}
INT8 = {"op": "quantize", "target": ["weight", "activation"], "bits": 8}
BEFORE = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %conv_folded_integers = conv.folded_integers
    %conv_folded_scale = conv.folded_scale
    %conv_folded_zero_point = conv.folded_zero_point
    %conv_folded_bias = conv.folded_bias
    %conv_folded_weight = dequantize(%conv_folded_integers, %conv_folded_scale, %conv_folded_zero_point, 0)
    %conv = conv2d(%x_quantizer, %conv_folded_weight, %conv_folded_bias, (1, 1), (0, 0), (1, 1), 1)
    %compression_bn_quantizer_constants_scale = compression.bn_quantizer_constants.scale
    %compression_bn_quantizer_constants_zero_point = compression.bn_quantizer_constants.zero_point
    %bn_quantizer = quantize_dequantize(%conv, %compression_bn_quantizer_constants_scale, %compression_bn_quantizer_constants_zero_point, 0, 255)
    %compression_bn_channels_constants_mask = compression.bn_channels_constants.mask
    %compression_bn_channels_constants_scale = compression.bn_channels_constants.scale
    %compression_bn_channels_constants_zero_point = compression.bn_channels_constants.zero_point
    %bn_channels_mask = dequantize(%compression_bn_channels_constants_mask, %compression_bn_channels_constants_scale, %compression_bn_channels_constants_zero_point, 0)
    %bn_channels = mul(%bn_quantizer, %bn_channels_mask)
    %last_weight_integers = last.weight_integers
    %last_weight_scale = last.weight_scale
    %last_weight_zero_point = last.weight_zero_point
    %last_weight_quantizer = dequantize(%last_weight_integers, %last_weight_scale, %last_weight_zero_point, 0)
    %last_bias = last.bias
    %last = conv2d(%bn_channels, %last_weight_quantizer, %last_bias, (1, 1), (0, 0), (1, 1), 1)
    %compression_last_quantizer_constants_scale = compression.last_quantizer_constants.scale
    %compression_last_quantizer_constants_zero_point = compression.last_quantizer_constants.zero_point
    %last_quantizer = quantize_dequantize(%last, %compression_last_quantizer_constants_scale, %compression_last_quantizer_constants_zero_point, 0, 255)
    output %last_quantizer
"""
AFTER = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %conv_folded_scale = conv.folded_scale
    %conv_folded_zero_point = conv.folded_zero_point
    %conv_masked_integers = conv.masked_integers
    %conv_masked_bias = conv.masked_bias
    %conv_masked_weight = dequantize(%conv_masked_integers, %conv_folded_scale, %conv_folded_zero_point, 0)
    %conv = conv2d(%x_quantizer, %conv_masked_weight, %conv_masked_bias, (1, 1), (0, 0), (1, 1), 1)
    %compression_bn_quantizer_constants_scale = compression.bn_quantizer_constants.scale
    %compression_bn_quantizer_constants_zero_point = compression.bn_quantizer_constants.zero_point
    %bn_quantizer = quantize_dequantize(%conv, %compression_bn_quantizer_constants_scale, %compression_bn_quantizer_constants_zero_point, 0, 255)
    %last_weight_integers = last.weight_integers
    %last_weight_scale = last.weight_scale
    %last_weight_zero_point = last.weight_zero_point
    %last_weight_quantizer = dequantize(%last_weight_integers, %last_weight_scale, %last_weight_zero_point, 0)
    %last_bias = last.bias
    %last = conv2d(%bn_quantizer, %last_weight_quantizer, %last_bias, (1, 1), (0, 0), (1, 1), 1)
    %compression_last_quantizer_constants_scale = compression.last_quantizer_constants.scale
    %compression_last_quantizer_constants_zero_point = compression.last_quantizer_constants.zero_point
    %last_quantizer = quantize_dequantize(%last, %compression_last_quantizer_constants_scale, %compression_last_quantizer_constants_zero_point, 0, 255)
    output %last_quantizer
"""


def frozen(model: nn.Module, *rules: object) -> GraphModule:
    """A trained net as the passes before leave it."""
    passes = list(_FROZEN)
    until = next(i for i, p in enumerate(passes) if isinstance(p, FoldMasks))
    return after(passes[:until], trained(model, {"rules": list(rules)}, image()))


def test_folds_into_integers_and_bias() -> None:
    gm = frozen(seeded(ConvBnConv), CHANNELS, INT8)
    check_pass(gm, FoldMasks(), before=BEFORE, after=AFTER, example=image())
    integers, bias = gm.get_buffer("conv.masked_integers"), gm.get_buffer("conv.masked_bias")
    dead = ~integers.flatten(1).any(1)
    assert int(dead.sum()) == 2 and not bias[dead].any()


def test_folds_into_a_batch_norm_behind_a_float_weight() -> None:
    gm = frozen(seeded(ConvBnConv), CHANNELS)
    expected = gm(image())
    assert run(gm, [FoldMasks()])
    assert "mul(" not in render(gm)
    torch.testing.assert_close(gm(image()), expected, rtol=0, atol=0)


def test_no_mask_of_channels_is_left_in_the_frozen_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net = trained(model, {"rules": [CHANNELS, INT8]}, image())
    assert "mul(" not in render(fxc.freeze(net))


def test_leaves_alone_masks_of_single_elements() -> None:
    gm = frozen(seeded(ConvBnConv), {**CHANNELS, "target": "activation", "pattern": "unstructured"}, INT8)
    assert "mul(" in render(gm)
    check_unchanged(gm, FoldMasks(), render(gm))


def test_refuses_a_mask_that_is_left() -> None:
    with pytest.raises(PassError, match="could be folded and was not"):
        FoldMasks().ensures(frozen(seeded(ConvBnConv), CHANNELS, INT8))
