"""Pruners on activations."""

from __future__ import annotations

import pytest
from helpers import ConvBnRelu, Mlp, canonical, check_pass, check_unchanged, image, rows, seeded

from fxcompress.errors import PassError
from fxcompress.passes import PruneActivations
from fxcompress.pipeline import run
from fxcompress.rules import Prune

RULE = Prune(target="activation", sparsity=0.5)
BEFORE = """
    input %x
    %fc1_weight = fc1.weight
    %fc1_bias = fc1.bias
    %fc1 = linear(%x, %fc1_weight, %fc1_bias)
    %relu = relu:ReLU(%fc1)
    %drop = drop:Dropout(%relu)
    %fc2_weight = fc2.weight
    %fc2_bias = fc2.bias
    %fc2 = linear(%drop, %fc2_weight, %fc2_bias)
    output %fc2
"""
AFTER = """
    input %x
    %fc1_weight = fc1.weight
    %fc1_bias = fc1.bias
    %fc1 = linear(%x, %fc1_weight, %fc1_bias)
    %relu = relu:ReLU(%fc1)
    %relu_pruner = compression.relu_pruner:Pruner(%relu)
    %drop = drop:Dropout(%relu_pruner)
    %fc2_weight = fc2.weight
    %fc2_bias = fc2.bias
    %fc2 = linear(%drop, %fc2_weight, %fc2_bias)
    output %fc2
"""


def test_inserts_a_pruner_behind_the_activation_function() -> None:
    net = canonical(seeded(Mlp), rows())
    check_pass(net, PruneActivations({"relu": RULE}), before=BEFORE, after=AFTER, example=rows())
    pruner = net.get_submodule("compression.relu_pruner")
    assert pruner.mask.shape == (4,)
    assert pruner.of_activation


def test_leaves_alone_activations_without_a_rule() -> None:
    check_unchanged(canonical(seeded(Mlp), rows()), PruneActivations({}), BEFORE)


@pytest.mark.parametrize("name", ["fc1", "x", "fc2"])
def test_refuses_what_is_no_end_of_a_unit_or_an_output(name: str) -> None:
    net = canonical(seeded(Mlp), rows())
    with pytest.raises(PassError, match=rf"no activation '{name}'; the graph has \['relu'\]"):
        run(net, [PruneActivations({name: RULE})])


def test_refuses_the_only_activation_if_it_is_the_output() -> None:
    net = canonical(seeded(ConvBnRelu), image())
    with pytest.raises(PassError, match=r"no activation 'relu'; the graph has \[\]"):
        run(net, [PruneActivations({"relu": RULE})])
