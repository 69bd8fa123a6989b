"""Products on integers: exact, whatever the order of additions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Fc, Shared, after, check_pass, check_unchanged, constants, image, rows, seeded, trained
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import PassError
from fxcompress.integer import per_output_channel
from fxcompress.passes import FoldBatchNorm, Freeze, IntegerProducts, QuantizeBias, RemoveDisabled
from fxcompress.pipeline import Pass, run
from fxcompress.render import render
from fxcompress.rules import Quantize

FROZEN: list[Pass] = [RemoveDisabled(), Freeze(), FoldBatchNorm(), QuantizeBias()]
INPUT_AND_WEIGHTS = [
    Quantize(target="activation", bits=8, match={"name": ["x", "input"]}),
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
    %fc_bias_integers = fc.bias_integers
    %fc_bias_scale = fc.bias_scale
    %fc_bias_1 = dequantize(%fc_bias_integers, %fc_bias_scale, None, 0)
    %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias_1)
    output %fc
"""
AFTER = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %fc_weight_integers = fc.weight_integers
    %fc_weight_scale = fc.weight_scale
    %fc_bias_integers = fc.bias_integers
    %fc = integer_linear(%x_quantizer, %fc_weight_integers, %fc_bias_integers, (%compression_x_quantizer_constants_scale, %fc_weight_scale), False)
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
ROUNDINGS = 2.0**-20  # outputs are below 2: a float product rounds three terms, a bias and their sums


def integers_behind(layer: nn.Module, example: Tensor, bias: float) -> tuple[Tensor, dict[str, Tensor], Tensor, str]:
    """Output of the integer product, its int64 constants, its int64 input, and the text of the graph."""
    net = trained(nn.Sequential(layer), INPUT_AND_WEIGHTS, example)
    with torch.no_grad():
        layer.get_parameter("bias").add_(bias)
    gm = after([*FROZEN, IntegerProducts()], net)
    found = constants(gm, "0") | {"x_scale": net.get_submodule("compression.input_quantizer").scale}
    on_grid = net.get_submodule("compression.input_quantizer")(example)
    return gm(example), found, torch.round(on_grid / found["x_scale"]).long(), render(gm)


def scaled(total: Tensor, found: dict[str, Tensor], axis: int) -> Tensor:
    """int64 sums as the float32 that they stand for."""
    scale = found["x_scale"] * found["weight_scale"]
    return total.float() * scale.view([-1 if i == axis else 1 for i in range(total.ndim)])


def test_computes_products_on_integers() -> None:
    gm = after(FROZEN, trained(seeded(Fc), INPUT_AND_WEIGHTS, rows()))
    check_pass(gm, IntegerProducts(), before=BEFORE, after=AFTER, example=rows(), tolerance=ROUNDINGS)


@pytest.mark.parametrize(("bias", "wide"), [(0.0, False), (3000.0, True)])
def test_linear_equals_int64_arithmetic(bias: float, wide: bool) -> None:
    output, found, x, text = integers_behind(nn.Linear(64, 32), torch.randn(64, 64), bias)
    total = x @ found["weight_integers"].long().T + found["bias_integers"].long()
    assert f", {wide})" in text
    assert (int(total.abs().max()) >= 2**24) is wide
    assert torch.equal(output, scaled(total, found, axis=1))


@pytest.mark.parametrize(("bias", "wide"), [(0.0, False), (3000.0, True)])
def test_convolution_equals_int64_arithmetic(bias: float, wide: bool) -> None:
    layer = nn.Conv2d(8, 6, 3, stride=2, padding=1)
    output, found, x, text = integers_behind(layer, torch.randn(4, 8, 9, 9), bias)
    columns = F.unfold(x.double(), 3, padding=1, stride=2).long()  # moves values, computes nothing
    total = found["weight_integers"].long().flatten(1) @ columns + found["bias_integers"].long()[:, None]
    assert f", {wide}, (2, 2), (1, 1), (1, 1), 1)" in text
    assert torch.equal(output, scaled(total, found, axis=1).view_as(output))


def test_sums_that_can_leave_float32_are_kept_in_float64() -> None:
    layer = nn.Linear(4096, 2, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    net = trained(nn.Sequential(layer), INPUT_AND_WEIGHTS, torch.rand(3, 4096))
    assert "True)" in render(after([*FROZEN, IntegerProducts()], net))


def test_a_shared_layer_is_computed_on_integers_both_times() -> None:
    net = trained(seeded(Shared), "Q8(w,f)", rows())
    gm = after([*FROZEN, IntegerProducts()], net)
    assert render(gm).count("integer_linear(") == 2
    step = float(net.get_submodule("compression.fc_1_quantizer").scale)
    torch.testing.assert_close(gm(rows()), net(rows()), rtol=0, atol=1.01 * step)


def test_leaves_alone_a_product_with_a_float_input() -> None:
    gm = after(FROZEN, trained(seeded(Fc), "Q8(w)", rows()))
    check_unchanged(gm, IntegerProducts(), FLOAT_INPUT)


def test_refuses_a_result_with_a_quantized_product_left_in_float() -> None:
    gm = after(FROZEN, trained(seeded(Fc), INPUT_AND_WEIGHTS, rows()))
    with pytest.raises(PassError, match="product 'fc' has integer operands and is computed in float"):
        IntegerProducts().ensures(gm)


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (nn.Conv2d(3, 4, 3), image()[0]),
        (nn.Conv1d(3, 5, 2), image()[0, 0, :3]),
        (nn.ConvTranspose2d(3, 2, 2), image()[0]),
        (nn.Linear(4, 3), image()[0, 0, 0]),
    ],
)
def test_one_sample_without_batch(layer: nn.Module, example: Tensor) -> None:
    gm = after(FROZEN, trained(nn.Sequential(layer), INPUT_AND_WEIGHTS, example))
    expected = gm(example)
    assert run(gm, [IntegerProducts()])
    torch.testing.assert_close(gm(example), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_transposed_convolution_equals_int64_arithmetic(groups: int) -> None:
    output, found, x, text = integers_behind(nn.ConvTranspose2d(4, 8, 1, groups=groups), image(4), 0.5)
    weight = found["weight_integers"].long()[:, :, 0, 0].view(groups, 4 // groups, 8 // groups)
    total = torch.einsum("ngihw,gio->ngohw", x.view(2, groups, 4 // groups, 4, 4), weight).reshape(2, 8, 4, 4)
    total = total + found["bias_integers"].long().view(8, 1, 1)
    scales = torch.cat([found["weight_scale"]] * groups)
    assert "integer_conv_transpose2d(" in text
    assert torch.equal(output, scaled(total, found | {"weight_scale": scales}, axis=1))


@pytest.mark.parametrize(
    ("scale", "channels", "expected"),
    [([1.0, 2.0], 2, [1.0, 2.0]), ([1.0, 2.0], 6, [1.0, 2.0] * 3), ([3.0], 2, [3.0, 3.0]), (4.0, 5, 4.0)],
)
def test_scales_of_output_channels(scale: Any, channels: int, expected: Any) -> None:
    assert per_output_channel(torch.tensor(scale), channels).tolist() == expected


class WritesLater(nn.Module):
    """Writes in place to a tensor that another name still reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y
        y += 0.3 * x
        return self.b(z)


def test_a_tensor_that_is_written_in_place_lies_on_no_grid() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4)
    net = fxc.compress(WritesLater(), "Q3(w,f)", x, total_steps=2)
    net(x)
    net.schedule.step()
    net(x)
    net.schedule.step()
    net.eval()
    with torch.no_grad():
        assert torch.allclose(
            fxc.freeze(net)(x), net(x), atol=float(net.get_submodule("compression.b_quantizer").scale) * 1.01
        )
