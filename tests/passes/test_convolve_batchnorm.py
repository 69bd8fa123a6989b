"""Batch norms between grids become depthwise convolutions."""

from __future__ import annotations

import pytest
import torch
from helpers import after, check_pass, check_unchanged, constants, image, seeded, trained
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.frozen import freeze
from fxcompress.passes import ConvolveBatchNorm, Freeze
from fxcompress.render import render
from fxcompress.spec import Quantize

BEFORE = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %bn = bn:BatchNorm2d(%x_quantizer)
    %relu = relu:ReLU(%bn)
    %compression_relu_quantizer_constants_scale = compression.relu_quantizer_constants.scale
    %compression_relu_quantizer_constants_zero_point = compression.relu_quantizer_constants.zero_point
    %relu_quantizer = quantize_dequantize(%relu, %compression_relu_quantizer_constants_scale, %compression_relu_quantizer_constants_zero_point, 0, 255)
    %conv_weight = conv.weight
    %conv_bias = conv.bias
    %conv = conv2d(%relu_quantizer, %conv_weight, %conv_bias, (1, 1), (0, 0), (1, 1), 1)
    %add = add(%conv, %x_quantizer)
    output %add
"""
AFTER = BEFORE.replace(
    "%bn = bn:BatchNorm2d(%x_quantizer)",
    """%bn_weight_integers = bn.weight_integers
    %bn_weight_scale = bn.weight_scale
    %bn_weight_zero_point = bn.weight_zero_point
    %bn_shift = bn.shift
    %bn_weight = dequantize(%bn_weight_integers, %bn_weight_scale, %bn_weight_zero_point, 0)
    %bn = conv2d(%x_quantizer, %bn_weight, %bn_shift, (1, 1), (0, 0), (1, 1), 3)""",
)


class PreActivation(nn.Module):
    """Batch norm and activation function in front of a convolution, and its input added."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, **options)
        if self.bn.affine:
            with torch.no_grad():
                self.bn.weight.copy_(torch.tensor([1.5, -0.5, 0.0]))
                self.bn.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.relu(self.bn(x))) + x
        return out


def frozen(model: nn.Module, *names: str) -> GraphModule:
    """The model with these activations on grids."""
    rules = [Quantize(target="activation", bits=8, first_last_bits=8, match={"name": n}) for n in names]
    return after([Freeze()], trained(model, rules, image()))


def test_makes_a_convolution_of_a_batch_norm_between_grids() -> None:
    gm = frozen(seeded(PreActivation), "x", "relu")
    check_pass(gm, ConvolveBatchNorm(), before=BEFORE, after=AFTER, example=image(), tolerance=1e-6)


def test_weights_are_the_largest_integer_with_the_sign_of_gamma() -> None:
    gm = frozen(seeded(PreActivation), "x", "relu")
    ConvolveBatchNorm().rewrite(gm)
    stored = constants(gm, "bn")
    assert stored["weight_integers"].flatten().tolist() == [127, -127, 0]
    assert bool((stored["weight_scale"] > 0).all())
    assert stored["shift"][2] == pytest.approx(0.3)


def test_takes_a_batch_norm_without_parameters() -> None:
    gm = frozen(PreActivation(affine=False), "x", "relu")
    expected = gm(image())
    assert ConvolveBatchNorm().rewrite(gm)
    gm.recompile()
    torch.testing.assert_close(gm(image()), expected)


def test_a_frozen_net_computes_it_on_integers() -> None:
    net = trained(seeded(PreActivation), "Q8(w,f)", image())
    text = render(freeze(net))
    assert "%bn = integer_conv2d(" in text
    assert "BatchNorm2d" not in text


@pytest.mark.parametrize("names", [["relu"], ["x"]])
def test_leaves_alone_one_with_a_float_side(names: list[str]) -> None:
    gm = frozen(seeded(PreActivation), *names)
    check_unchanged(gm, ConvolveBatchNorm(), render(gm))


def test_leaves_alone_one_on_batch_statistics() -> None:
    gm = frozen(PreActivation(track_running_stats=False), "x", "relu")
    check_unchanged(gm, ConvolveBatchNorm(), render(gm))


def test_refuses_training_mode_and_a_result_with_one_left() -> None:
    gm = frozen(seeded(PreActivation), "x", "relu")
    with pytest.raises(PassError, match="batch norm 'bn' stands between two grids and is computed in float"):
        ConvolveBatchNorm().ensures(gm)
    with pytest.raises(PassError, match="the net is in training mode"):
        ConvolveBatchNorm().requires(gm.train())
