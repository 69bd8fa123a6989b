"""Pruners on weights."""

from __future__ import annotations

import pytest
from helpers import Fc, Shared, canonical, check_pass, check_unchanged, enable, rows, seeded

from fxcompress.errors import PassError
from fxcompress.passes import PruneWeights
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Prune

RULE = Prune(target="weight", sparsity=0.5)
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
    %fc_weight_pruner = compression.fc.weight_pruner:Pruner(%fc_weight)
    %fc_bias = fc.bias
    %fc = linear(%x, %fc_weight_pruner, %fc_bias)
    output %fc
"""


def test_inserts_a_pruner_after_a_weight() -> None:
    net = canonical(seeded(Fc), rows())
    check_pass(net, PruneWeights({"fc.weight": RULE}), before=BEFORE, after=AFTER, example=rows())
    pruner = net.get_submodule("compression.fc.weight_pruner")
    assert pruner.mask.shape == net.fc.weight.shape
    assert not pruner.of_activation


def test_a_weight_used_twice_has_one_pruner() -> None:
    net = canonical(seeded(Shared), rows())
    assert run(net, [PruneWeights({"fc.weight": RULE})])
    assert render(net).count(":Pruner(") == 1
    assert render(net).count("%fc_weight_pruner, %fc_bias") == 2


def test_the_mask_acts_once_enabled() -> None:
    net = canonical(seeded(Fc), rows())
    run(net, [PruneWeights({"fc.weight": RULE})])
    enable(net)
    net.compression.fc.weight_pruner.mask.zero_()
    assert (net(rows()) == net.fc.bias).all()


def test_leaves_alone_weights_without_a_rule() -> None:
    check_unchanged(canonical(seeded(Fc), rows()), PruneWeights({}), BEFORE)


def test_refuses_a_name_that_is_no_weight() -> None:
    net = canonical(seeded(Fc), rows())
    with pytest.raises(PassError, match=r"'prune-weights' failed after \[\]: no weight 'fc.bias'; .*\['fc.weight'\]"):
        run(net, [PruneWeights({"fc.bias": RULE})])
    assert render(net).startswith("input %x\n%fc_weight = fc.weight\n%fc_bias")


def test_refuses_a_result_where_a_weight_is_read_past_its_pruner() -> None:
    net = canonical(seeded(Shared), rows())
    run(net, [PruneWeights({"fc.weight": RULE})])
    weight, last = (next(n for n in net.graph.nodes if n.name == name) for name in ("fc_weight", "fc_1"))
    last.args = (last.args[0], weight, last.args[2])
    with pytest.raises(PassError, match=r"weight 'fc.weight' has users besides its pruner"):
        PruneWeights({"fc.weight": RULE}).ensures(net)
