"""Activation functions that a grid's saturation does not do move into its bounds."""

from __future__ import annotations

import pytest
import torch
from helpers import after, check_pass, check_unchanged, image, seeded, trained
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.passes import Freeze, MoveActivations
from fxcompress.render import render
from fxcompress.rules import Quantize

BEFORE = """
    input %x
    %conv_weight = conv.weight
    %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %relu = relu:ReLU(%conv)
    %compression_relu_quantizer_constants_scale = compression.relu_quantizer_constants.scale
    %compression_relu_quantizer_constants_zero_point = compression.relu_quantizer_constants.zero_point
    %relu_quantizer = quantize_dequantize(%relu, %compression_relu_quantizer_constants_scale, %compression_relu_quantizer_constants_zero_point, 0, 255)
    output %relu_quantizer
"""
AFTER = """
    input %x
    %conv_weight = conv.weight
    %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %compression_relu_quantizer_constants_scale = compression.relu_quantizer_constants.scale
    %compression_relu_quantizer_constants_zero_point = compression.relu_quantizer_constants.zero_point
    %relu_quantizer = quantize_dequantize(%conv, %compression_relu_quantizer_constants_scale, %compression_relu_quantizer_constants_zero_point, 128, 255)
    output %relu_quantizer
"""


class ConvRelu(nn.Module):
    """A convolution and an activation function."""

    def __init__(self, relu: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.relu = relu()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv(x))
        return out


def frozen(symmetric: bool, model: nn.Module) -> GraphModule:
    """The model with its output on a grid with (symmetric) or without negative values."""
    rule = Quantize(target="activation", bits=8, symmetric=symmetric, match={"name": "relu"})
    return after([Freeze()], trained(model, [rule], image()))


def test_moves_relu_into_a_grid_with_negative_values() -> None:
    check_pass(frozen(True, seeded(ConvRelu)), MoveActivations(), before=BEFORE, after=AFTER, example=image())


@pytest.mark.parametrize(("reach", "moves"), [(5.9, False), (6.0, False), (6.5, True)])
def test_moves_relu6_into_a_grid_that_reaches_past_six(reach: float, moves: bool) -> None:
    gm = frozen(False, ConvRelu(nn.ReLU6))
    gm.get_buffer("compression.relu_quantizer_constants.scale").fill_(reach / 255)
    expected = gm(image() * 50)
    assert MoveActivations().rewrite(gm) is moves
    gm.recompile()
    assert torch.equal(gm(image() * 50), expected)


def test_leaves_alone_relu_before_a_grid_without_negative_values() -> None:
    gm = frozen(False, seeded(ConvRelu))
    check_unchanged(gm, MoveActivations(), render(gm))


def test_refuses_a_result_with_a_function_the_grid_does_not_do() -> None:
    with pytest.raises(PassError, match="the grid of 'relu' does not do its activation function"):
        MoveActivations().ensures(frozen(True, seeded(ConvRelu)))
