"""Quantizers on weights."""

from __future__ import annotations

import pytest
from helpers import Fc, Mlp, Shared, canonical, check_pass, check_unchanged, image, rows, seeded
from torch import nn

from fxcompress.errors import PassError
from fxcompress.grid import Grid
from fxcompress.passes import PruneWeights, QuantizeWeights
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Prune, Quantize

RULE = Quantize(target="weight", bits=4)
BEFORE = """
    input %x
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%x, %fc_weight, %fc_bias)
    output %fc
"""
AFTER = """
    input %x
    %fc_weight = fc.weight
    %fc_weight_quantizer = compression.fc.weight_quantizer:Quantizer(%fc_weight)
    %fc_bias = fc.bias
    %fc = linear(%x, %fc_weight_quantizer, %fc_bias)
    output %fc
"""


def test_inserts_a_quantizer_after_a_weight() -> None:
    net = canonical(seeded(Fc), rows())
    check_pass(net, QuantizeWeights({"fc.weight": RULE}), before=BEFORE, after=AFTER, example=rows())


def test_the_first_layer_keeps_8_bits_and_each_channel_has_a_scale() -> None:
    net = canonical(seeded(Fc), rows())
    run(net, [QuantizeWeights({"fc.weight": RULE})])
    quantizer = net.get_submodule("compression.fc.weight_quantizer")
    assert quantizer.grid == Grid(8, signed=True, symmetric=True, narrow=True)
    assert (quantizer.axis, tuple(quantizer.scale.shape)) == (0, (2,))


def test_per_tensor_has_one_scale() -> None:
    net = canonical(seeded(Fc), rows())
    run(net, [QuantizeWeights({"fc.weight": Quantize(target="weight", bits=4, per_channel=False, first_last_bits=4)})])
    quantizer = net.get_submodule("compression.fc.weight_quantizer")
    assert (quantizer.grid.bits, quantizer.axis, tuple(quantizer.scale.shape)) == (4, None, ())


def test_channels_of_a_transposed_convolution_are_its_second_axis() -> None:
    net = canonical(nn.Sequential(nn.ConvTranspose2d(3, 5, 2)), image())
    run(net, [QuantizeWeights({"0.weight": RULE})])
    quantizer = net.get_submodule("compression.0.weight_quantizer")
    assert (quantizer.axis, tuple(quantizer.scale.shape)) == (1, (5,))


def test_stands_behind_the_pruner() -> None:
    net = canonical(seeded(Shared), rows())
    run(net, [PruneWeights({"fc.weight": Prune(target="weight", sparsity=0.5)}), QuantizeWeights({"fc.weight": RULE})])
    assert "%fc_weight_quantizer = compression.fc.weight_quantizer:Quantizer(%fc_weight_pruner)" in render(net)
    assert render(net).count("%fc_weight_quantizer, %fc_bias") == 2


def test_leaves_alone_weights_without_a_rule() -> None:
    check_unchanged(canonical(seeded(Fc), rows()), QuantizeWeights({}), BEFORE)


def test_refuses_a_name_that_is_no_weight() -> None:
    net = canonical(seeded(Mlp), rows())
    with pytest.raises(PassError, match=r"no weight 'fc3.weight'; the graph has \['fc1.weight', 'fc2.weight'\]"):
        run(net, [QuantizeWeights({"fc3.weight": RULE})])
