"""Pruners of whole channels."""

from __future__ import annotations

import pytest
from helpers import ConvBnConv, Fc, canonical, check_pass, check_unchanged, enable, image, rows, seeded
from torch import nn

from fxcompress.channels import find_channels
from fxcompress.errors import PassError
from fxcompress.groups import Masked, find_groups, masked_by
from fxcompress.module import CompressedModule
from fxcompress.passes import PruneChannels
from fxcompress.pipeline import run
from fxcompress.render import render

BEFORE = """
    input %x
    %conv_weight = conv.weight
    %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %bn = bn:BatchNorm2d(%conv)
    %last_weight = last.weight
    %last_bias = last.bias
    %last = conv2d(%bn, %last_weight, %last_bias, (1, 1), (0, 0), (1, 1), 1)
    output %last
"""
AFTER = """
    input %x
    %conv_weight = conv.weight
    %conv_weight_pruner = compression.conv.weight_pruner:Pruner(%conv_weight)
    %conv = conv2d(%x, %conv_weight_pruner, None, (1, 1), (0, 0), (1, 1), 1)
    %bn = bn:BatchNorm2d(%conv)
    %bn_channels = compression.bn_channels:Pruner(%bn)
    %last_weight = last.weight
    %last_bias = last.bias
    %last = conv2d(%bn_channels, %last_weight, %last_bias, (1, 1), (0, 0), (1, 1), 1)
    output %last
"""


def prune_channels(net: CompressedModule) -> PruneChannels:
    """The pass for all channels of a net."""
    channels = find_channels(net.views())
    return PruneChannels(masked_by(channels, [(group, None) for group in find_groups(channels)]))


def test_inserts_pruners_behind_weight_and_batch_norm() -> None:
    net = canonical(seeded(ConvBnConv), image())
    check_pass(net, prune_channels(net), before=BEFORE, after=AFTER, example=image())
    assert net.get_submodule("compression.conv.weight_pruner").mask.shape == (4, 1, 1, 1)
    assert net.get_submodule("compression.bn_channels").mask.shape == (4, 1, 1)


def test_masked_channels_are_zero_behind_batch_norm() -> None:
    net = canonical(seeded(ConvBnConv), image())
    run(net, [prune_channels(net)])
    enable(net)
    net.bn.bias.data.fill_(1)
    pruner = net.get_submodule("compression.bn_channels")
    pruner.mask[:2] = False
    seen = []
    pruner.register_forward_hook(lambda module, args, output: seen.append(output))
    net(image())
    assert not seen[0][:, :2].any() and bool(seen[0][:, 2:].any())


def test_a_relu_stays_next_to_its_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net = canonical(model, image())
    assert run(net, [prune_channels(net)])
    assert "%compression_1_channels" not in render(net)
    assert "compression.1_channels:Pruner(%_2)" in render(net)


def test_biases_are_masked_too() -> None:
    net = canonical(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), image())
    run(net, [prune_channels(net)])
    assert net.get_submodule("compression.0.bias_pruner").mask.shape == (4,)


def test_leaves_alone_what_has_no_mask() -> None:
    net = canonical(seeded(Fc), rows())
    check_unchanged(net, PruneChannels(Masked({}, {}, {})), render(net))


def test_refuses_a_result_without_its_pruner() -> None:
    net = canonical(seeded(ConvBnConv), image())
    with pytest.raises(PassError, match=r"'conv.weight' has users besides its pruner"):
        prune_channels(net).ensures(net)
