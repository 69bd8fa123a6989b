"""QDQ pairs on both sides of what runtimes compute on integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Cat, Fc, Mlp, after, check_pass, check_unchanged, image, rows, seeded, trained
from torch import Tensor, nn

from fxcompress.errors import PassError
from fxcompress.passes import (
    FoldBatchNorm,
    Freeze,
    IntegerProducts,
    LowerToQdq,
    MoveActivations,
    QuantizeBias,
    RemoveDisabled,
)
from fxcompress.pipeline import Pass, run
from fxcompress.render import render
from fxcompress.rules import Quantize

FROZEN: list[Pass] = [RemoveDisabled(), Freeze(), FoldBatchNorm(), QuantizeBias()]
INPUT = [Quantize(target="activation", bits=8, match={"name": "x"})]
BEFORE = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %flatten = flatten(%x_quantizer, 1)
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%flatten, %fc_weight, %fc_bias)
    output %fc
"""
AFTER = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %flatten = flatten(%x_quantizer, 1)
    %flatten_pair = quantize_dequantize(%flatten, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%flatten_pair, %fc_weight, %fc_bias)
    output %fc
"""
FLOAT = """
    input %x
    %flatten = flatten(%x, 1)
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%flatten, %fc_weight, %fc_bias)
    output %fc
"""


class Flat(Fc):
    """Flattens, then the linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def flat() -> Tensor:
    return rows()[:, None]


def test_puts_a_pair_behind_what_keeps_values() -> None:
    gm = after([Freeze()], trained(seeded(Flat), INPUT, flat()))
    check_pass(gm, LowerToQdq(), before=BEFORE, after=AFTER, example=flat())


def test_a_concatenation_of_one_grid_keeps_values() -> None:
    net = trained(seeded(Cat), "Q8(f)", image())
    gm = after([*FROZEN, LowerToQdq()], net)
    assert " = quantize_dequantize(%cat, %compression_a_quantizer_constants_scale" in render(gm)
    assert torch.equal(gm(image()), net(image()))


class ReluCat(Cat):
    """Concatenates values of either sign with others that end at zero and at six."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return torch.cat([a, torch.relu(self.b(x)), F.relu6(self.a(2 * x))], 1)


def test_a_concatenation_of_parts_of_one_grid_lies_on_all_of_it() -> None:
    net = trained(seeded(ReluCat), "Q8(f)", image())
    gm = after([*FROZEN, MoveActivations(), LowerToQdq()], net)
    [pair] = [n for n in gm.graph.nodes if n.name == "cat_pair"]
    assert pair.args[3:] == (0, 255)
    assert torch.equal(gm(image()), net(image()))


def test_a_mask_keeps_values() -> None:
    net = trained(seeded(Mlp), "P0.5(f) -> Q8(f)", rows())
    gm = after([*FROZEN, LowerToQdq()], net)
    assert " = quantize_dequantize(%relu_pruner, %compression_relu_quantizer_constants_scale" in render(gm)
    assert torch.equal(gm(rows()), net(rows()))


class Pooled(nn.Module):
    """Pools, then a convolution to one channel."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool, self.conv = pool, nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.pool(x))
        return out


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((1, 1)),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, output_size=[1, 1]),
    ],
)
def test_pooling_to_one_pixel_has_the_runtimes_name(pool: Callable[[Tensor], Tensor]) -> None:
    gm = after(FROZEN, trained(Pooled(pool), "Q8(w)", image()))
    expected = gm(image())
    assert run(gm, [LowerToQdq()])
    assert "global_average_pool(%x)" in render(gm)
    assert torch.equal(gm(image()), expected)
    assert not run(gm, [LowerToQdq()])


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(2), nn.AvgPool2d(1), lambda x: F.avg_pool2d(x, 1)])
def test_other_pooling_keeps_its_name(pool: Callable[[Tensor], Tensor]) -> None:
    gm = after(FROZEN, trained(Pooled(pool), "Q8(w)", image()))
    check_unchanged(gm, LowerToQdq(), render(gm))


def test_leaves_alone_what_has_no_quantized_input() -> None:
    net = trained(seeded(Flat), INPUT, flat())
    net.get_submodule("compression.x_quantizer").enabled.fill_(False)
    check_unchanged(after([RemoveDisabled()], net), LowerToQdq(), FLOAT)


def test_refuses_integer_products() -> None:
    gm = after([*FROZEN, IntegerProducts()], trained(seeded(Flat), "Q8(w,f)", flat()))
    with pytest.raises(PassError, match="'fc' is an integer product; lower before `integer-products`"):
        run(gm, [LowerToQdq()])


def test_refuses_a_result_with_a_pair_missing() -> None:
    gm = after([Freeze()], trained(seeded(Flat), INPUT, flat()))
    with pytest.raises(PassError, match="'flatten' keeps values of a grid and has no QDQ pair behind it"):
        LowerToQdq().ensures(gm)
