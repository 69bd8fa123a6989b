"""Biases become int32 on the grid of their product's sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Fc, after, check_pass, check_unchanged, constants, image, rows, seeded, trained
from torch import nn

from fxcompress.frozen import freeze
from fxcompress.passes import Freeze, QuantizeBias, RemoveDisabled
from fxcompress.render import render
from fxcompress.rules import Quantize

INPUT_AND_WEIGHTS = [
    Quantize(target="activation", bits=8, match={"name": "x"}),
    Quantize(target="weight", bits=8),
]
BEFORE = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %fc_weight_integers = fc.weight_integers
    %fc_weight_scale = fc.weight_scale
    %fc_weight_zero_point = fc.weight_zero_point
    %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)
    %fc_bias = fc.bias
    %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias)
    output %fc
"""
AFTER = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %fc_weight_integers = fc.weight_integers
    %fc_weight_scale = fc.weight_scale
    %fc_weight_zero_point = fc.weight_zero_point
    %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)
    %fc_bias = fc.bias
    %fc_bias_integers = fc.bias_integers
    %fc_bias_scale = fc.bias_scale
    %fc_bias_1 = dequantize(%fc_bias_integers, %fc_bias_scale, None, 0)
    %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias_1)
    output %fc
"""
FLOAT_INPUT = """
    input %x
    %fc_weight_integers = fc.weight_integers
    %fc_weight_scale = fc.weight_scale
    %fc_weight_zero_point = fc.weight_zero_point
    %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)
    %fc_bias = fc.bias
    %fc = linear(%x, %fc_weight_quantizer, %fc_bias)
    output %fc
"""


def with_bias(*bias: float) -> Any:
    """A quantized linear layer with this bias."""
    net = trained(seeded(Fc), INPUT_AND_WEIGHTS, rows())
    with torch.no_grad():
        net.fc.bias.copy_(torch.tensor(bias))
    return net


def step(net: Any) -> torch.Tensor:
    """The grid of the sums, per channel."""
    scales = (
        net.get_submodule("compression.x_quantizer").scale,
        net.get_submodule("compression.fc.weight_quantizer").scale,
    )
    return scales[0] * scales[1]


def test_stores_biases_as_integers() -> None:
    net = trained(seeded(Fc), INPUT_AND_WEIGHTS, rows())
    # a bias moves by half a step of the sums' grid at most; float32 then rounds four sums of size one
    half = float(step(net).max()) / 2 + 4 * 2.0**-23
    check_pass(after([Freeze()], net), QuantizeBias(), before=BEFORE, after=AFTER, example=rows(), tolerance=half)


def test_integers_and_scale_are_onnx_s() -> None:
    net = with_bias(0.5, -0.25)
    stored = constants(after([Freeze(), QuantizeBias()], net), "fc")
    assert stored["bias_integers"].dtype == torch.int32
    assert torch.equal(stored["bias_scale"], step(net))
    assert torch.equal(stored["bias_integers"].double(), torch.round(net.fc.bias.double() / step(net).double()))


def test_a_bias_beyond_int32_raises_its_channels_scale() -> None:
    net = with_bias(1e6, 0.5)
    gm = after([Freeze(), QuantizeBias()], net)
    stored, scale = constants(gm, "fc"), net.get_submodule("compression.fc.weight_quantizer").scale
    assert stored["raised_scale"][0] > scale[0]
    assert stored["raised_scale"][1] == scale[1]
    rounded = torch.round(
        stored["weight_integers"].double() * (scale.double() / stored["raised_scale"].double())[:, None]
    )
    assert torch.equal(stored["raised_integers"].double(), rounded)
    assert torch.equal(stored["raised_integers"][1], stored["weight_integers"][1])
    assert 0.99 * 2**31 < int(stored["bias_integers"][0]) < 2**31
    assert gm.meta["notes"] == ["'fc': the bias of 1 channels leaves int32, so their weight scale was raised"]


@pytest.mark.parametrize("bias", [1e6, -1e6, 1e20, -1e30])
def test_a_bias_beyond_int32_is_computed_all_the_same(bias: float) -> None:
    net = with_bias(bias, 0.5)
    output = freeze(net)(rows())
    assert output.isfinite().all()
    # what the other three weights of the channel add is lost in float32 or in the raised scale
    torch.testing.assert_close(output[:, 0], torch.full((4,), bias), rtol=1e-5, atol=0)
    torch.testing.assert_close(output[:, 1], net(rows())[:, 1], rtol=0, atol=float(step(net).max()))


def test_biases_that_fit_leave_no_note() -> None:
    assert "notes" not in after([Freeze(), QuantizeBias()], with_bias(1.0, -1.0)).meta


def test_leaves_alone_a_product_with_a_float_input() -> None:
    gm = after([Freeze()], trained(seeded(Fc), "Q8(w)", rows()))
    check_unchanged(gm, QuantizeBias(), FLOAT_INPUT)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_transposed_convolutions_have_biases_too(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 8, 2, groups=groups)
    net = trained(nn.Sequential(layer), "Q8(w,f)", image(4))
    gm = after([RemoveDisabled(), Freeze(), QuantizeBias()], net)
    stored = constants(gm, "0")
    weight = net.get_submodule("compression.0.weight_quantizer").scale
    assert weight.shape == (8 // groups,)
    scale = net.get_submodule("compression.input_quantizer").scale * torch.cat([weight] * groups)
    assert torch.equal(stored["bias_scale"], scale)
    assert torch.equal(stored["bias_integers"].double(), torch.round(layer.bias.double() / scale.double()))


@pytest.mark.parametrize("channel", range(6))
def test_a_bias_beyond_int32_raises_the_scale_that_its_group_shares(channel: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2)
    net = trained(nn.Sequential(layer), "Q8(w,f)", image(4))
    with torch.no_grad():
        layer.bias[channel] = 1e6
    gm = after([RemoveDisabled(), Freeze(), QuantizeBias()], net)
    stored, scale = constants(gm, "0"), net.get_submodule("compression.0.weight_quantizer").scale
    assert (stored["raised_scale"] > scale).tolist() == [i == channel % 3 for i in range(3)]
    assert 0.99 * 2**31 < int(stored["bias_integers"][channel]) < 2**31
    off = (stored["bias_integers"] * stored["bias_scale"].double() - layer.bias.double()).abs()
    assert (off <= stored["bias_scale"].double() / 2).all()
    assert "%_0_raised_weight = dequantize(%_0_raised_integers, %_0_raised_scale, %_0_raised_zero_point, 1)" in render(
        gm
    )
