"""Quantizers on activations."""

from __future__ import annotations

import pytest
from helpers import Fc, Mlp, Residual, canonical, check_pass, check_unchanged, image, rows, seeded

from fxcompress.errors import PassError
from fxcompress.grid import Grid
from fxcompress.passes import PruneActivations, QuantizeActivations
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Prune, Quantize

RULE = Quantize(target="activation", bits=4)
BEFORE = """
    input %x
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%x, %fc_weight, %fc_bias)
    output %fc
"""
AFTER = """
    input %x
    %x_quantizer = compression.x_quantizer:Quantizer(%x)
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%x_quantizer, %fc_weight, %fc_bias)
    %fc_quantizer = compression.fc_quantizer:Quantizer(%fc)
    output %fc_quantizer
"""
RESIDUAL = """
    input %x
    %x_quantizer = compression.x_quantizer:Quantizer(%x)
    %conv_weight = conv.weight
    %conv_bias = conv.bias
    %conv = conv2d(%x_quantizer, %conv_weight, %conv_bias, (1, 1), (0, 0), (1, 1), 1)
    %conv_quantizer = compression.conv_quantizer:Quantizer(%conv)
    %add_ = add(%conv_quantizer, %x_quantizer)
    %add__quantizer = compression.add__quantizer:Quantizer(%add_)
    output %add__quantizer
"""


def test_inserts_quantizers_around_a_product() -> None:
    net = canonical(seeded(Fc), rows())
    check_pass(net, QuantizeActivations({"x": RULE, "fc": RULE}), before=BEFORE, after=AFTER, example=rows())


def test_all_users_of_an_activation_read_one_quantizer() -> None:
    net = canonical(seeded(Residual), image())
    rules = {"x": RULE, "conv": RULE, "add_": RULE}
    check_pass(net, QuantizeActivations(rules), before=render(net), after=RESIDUAL, example=image())


def test_stands_behind_the_pruner_and_before_dropout() -> None:
    net = canonical(seeded(Mlp), rows())
    prune = PruneActivations({"relu": Prune(target="activation", sparsity=0.5)})
    run(net, [prune, QuantizeActivations({"relu": RULE})])
    assert "%relu_quantizer = compression.relu_quantizer:Quantizer(%relu_pruner)" in render(net)
    assert "%drop = drop:Dropout(%relu_quantizer)" in render(net)


@pytest.mark.parametrize("symmetric", [None, False, True])
def test_is_unsigned_and_affine_unless_asked(symmetric: bool | None) -> None:
    net = canonical(seeded(Mlp), rows())
    run(
        net,
        [QuantizeActivations({"relu": Quantize(target="activation", bits=5, symmetric=symmetric, first_last_bits=5)})],
    )
    quantizer = net.get_submodule("compression.relu_quantizer")
    assert quantizer.grid == Grid(5, signed=False, symmetric=bool(symmetric))
    assert (quantizer.grid.qmin, quantizer.grid.qmax, quantizer.grid.centre) == (0, 31, 16)
    assert tuple(quantizer.scale.shape) == ()


def test_leaves_alone_activations_without_a_rule() -> None:
    check_unchanged(canonical(seeded(Fc), rows()), QuantizeActivations({}), BEFORE)


def test_refuses_a_name_inside_a_unit() -> None:
    net = canonical(seeded(Mlp), rows())
    with pytest.raises(PassError, match=r"no activation 'fc1'; the graph has \['x', 'relu', 'fc2'\]"):
        run(net, [QuantizeActivations({"fc1": RULE})])
