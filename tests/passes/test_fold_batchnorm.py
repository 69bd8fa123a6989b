"""Batch norms go into scales and bias; the integers stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ConvBnRelu, after, check_pass, check_unchanged, constants, image, seeded, trained
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.passes import FoldBatchNorm, Freeze, RemoveDisabled
from fxcompress.pipeline import run
from fxcompress.render import render

BEFORE = """
    input %x
    %conv_weight_integers = conv.weight_integers
    %conv_weight_scale = conv.weight_scale
    %conv_weight_zero_point = conv.weight_zero_point
    %conv_weight_quantizer = dequantize(%conv_weight_integers, %conv_weight_scale, %conv_weight_zero_point, 0)
    %conv = conv2d(%x, %conv_weight_quantizer, None, (1, 1), (0, 0), (1, 1), 1)
    %bn = bn:BatchNorm2d(%conv)
    %relu = relu:ReLU(%bn)
    output %relu
"""
AFTER = """
    input %x
    %conv_folded_integers = conv.folded_integers
    %conv_folded_scale = conv.folded_scale
    %conv_folded_zero_point = conv.folded_zero_point
    %conv_folded_bias = conv.folded_bias
    %conv_folded_weight = dequantize(%conv_folded_integers, %conv_folded_scale, %conv_folded_zero_point, 0)
    %conv = conv2d(%x, %conv_folded_weight, %conv_folded_bias, (1, 1), (0, 0), (1, 1), 1)
    %relu = relu:ReLU(%conv)
    output %relu
"""
FLOAT_WEIGHT = """
    input %x
    %conv_weight = conv.weight
    %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %bn = bn:BatchNorm2d(%conv)
    %relu = relu:ReLU(%bn)
    output %relu
"""
ROUNDINGS = 1e-5  # outputs are below 10: float32 rounds the folded scale, the bias and 27 sums, 1e-6 each at most


def trained_unit() -> Any:
    """conv-bn-relu with integer weights and a batch norm of every sign and size."""
    net = trained(seeded(ConvBnRelu), "Q8(w)", image())
    with torch.no_grad():
        net.bn.weight.copy_(torch.tensor([-1.5, 0.0, 0.7, 1.0]))
        net.bn.bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.5]))
        net.bn.running_mean.copy_(torch.tensor([0.1, -0.3, 0.2, 0.0]))
        net.bn.running_var.copy_(torch.tensor([0.3, 2.0, 0.0, 1e-3]))
    return net


def frozen(model: nn.Module, example: Tensor) -> GraphModule:
    return after([RemoveDisabled(), Freeze()], trained(model, "Q8(w)", example))


def test_folds_into_scales_and_bias() -> None:
    gm = after([Freeze()], trained(seeded(ConvBnRelu), "Q8(w)", image()))
    check_pass(gm, FoldBatchNorm(), before=BEFORE, after=AFTER, example=image(), tolerance=ROUNDINGS)


def test_scales_are_the_float64_quotient_rounded_once() -> None:
    net = trained_unit()
    gm = after([Freeze(), FoldBatchNorm()], net)
    scale = net.get_submodule("compression.conv.weight_quantizer").scale
    sigma = torch.sqrt(net.bn.running_var.double() + net.bn.eps)
    expected = (scale.double() * net.bn.weight.double().abs() / sigma).float()
    folded = constants(gm, "conv")["folded_scale"]
    assert (folded > 0).all()
    assert torch.equal(folded[[0, 2, 3]], expected[[0, 2, 3]])
    assert folded[1] == scale[1]


def test_a_quotient_halfway_between_two_floats_rounds_to_even() -> None:
    net, sigma = (
        trained_unit(),
        torch.tensor([49.0, 103.0, 107.0, 161.0]),
    )  # s (gamma (1 / sigma)) falls short of halfway
    net.bn.eps = 0.0
    with torch.no_grad():
        net.bn.running_var.copy_(sigma**2)
        net.bn.weight.copy_(sigma * (1 - 2.0**-12))
        net.get_submodule("compression.conv.weight_quantizer").scale.fill_(1 - 3 * 2.0**-13)
    folded = constants(after([Freeze(), FoldBatchNorm()], net), "conv")["folded_scale"]
    assert folded.tolist() == [1 - 5 * 2.0**-13 + 2.0**-23] * 4


def test_integers_are_negated_zeroed_or_kept() -> None:
    net = trained_unit()
    kept = constants(after([Freeze()], net), "conv")["weight_integers"]
    folded = constants(after([Freeze(), FoldBatchNorm()], net), "conv")["folded_integers"]
    assert torch.equal(folded, kept * torch.tensor([-1, 0, 1, 1], dtype=torch.int8).view(4, 1, 1, 1))


def test_outputs_stay_for_any_gamma_and_variance() -> None:
    net = trained_unit()
    unfolded, gm = after([Freeze()], net)(image()), after([Freeze(), FoldBatchNorm()], net)
    # variance 0 and eps 1e-5 multiply by up to 0.7 / sqrt(1e-5) = 221, and with it the roundings
    torch.testing.assert_close(gm(image()), unfolded, rtol=1e-6, atol=221 * 1e-6)
    bias = constants(gm, "conv")["folded_bias"]
    assert bias[1] == net.bn.bias[1]


def test_a_vanishing_gamma_leaves_a_positive_scale() -> None:
    net = trained_unit()
    with torch.no_grad():
        net.bn.weight.fill_(1e-43)
    assert (constants(after([Freeze(), FoldBatchNorm()], net), "conv")["folded_scale"] >= 2.0**-126).all()


@pytest.mark.parametrize(
    ("layers", "example"),
    [
        ((nn.Conv2d(3, 4, 2, bias=True), nn.BatchNorm2d(4, affine=False)), image()),
        ((nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), image()),
        ((nn.Conv1d(3, 6, 2, groups=3), nn.BatchNorm1d(6)), image()[:, :, 0]),
        ((nn.Linear(4, 5), nn.BatchNorm1d(5)), image()[:, 0, 0]),
    ],
)
def test_folds_behind_every_product(layers: tuple[nn.Module, nn.Module], example: Tensor) -> None:
    gm = frozen(nn.Sequential(*layers), example)
    before = gm(example)
    assert run(gm, [FoldBatchNorm()])
    assert "BatchNorm" not in render(gm)
    torch.testing.assert_close(gm(example), before, rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize(
    ("layers", "example"),
    [
        ((nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, track_running_stats=False)), image()),
        ((nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)), image(4)),
        ((nn.Linear(4, 3), nn.BatchNorm1d(3)), image()[:, :, 0]),
    ],
)
def test_leaves_alone_what_has_no_scale_of_its_own(layers: tuple[nn.Module, nn.Module], example: Tensor) -> None:
    gm = frozen(nn.Sequential(*layers), example)
    check_unchanged(gm, FoldBatchNorm(), render(gm))


def test_leaves_alone_float_weights() -> None:
    net = trained(seeded(ConvBnRelu), "Q8(w)", image())
    net.get_submodule("compression.conv.weight_quantizer").enabled.fill_(False)
    check_unchanged(after([RemoveDisabled(), Freeze()], net), FoldBatchNorm(), FLOAT_WEIGHT)


def test_refuses_training_mode() -> None:
    gm = after([Freeze()], trained(seeded(ConvBnRelu), "Q8(w)", image())).train()
    with pytest.raises(PassError, match="batch norm folds in evaluation mode only"):
        run(gm, [FoldBatchNorm()])


def test_refuses_a_result_with_a_batch_norm_to_fold() -> None:
    gm = after([Freeze()], trained(seeded(ConvBnRelu), "Q8(w)", image()))
    with pytest.raises(PassError, match="batch norm 'bn' could be folded and was not"):
        FoldBatchNorm().ensures(gm)
