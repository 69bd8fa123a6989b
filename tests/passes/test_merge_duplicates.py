"""What is computed twice from the same inputs is computed once, unless somebody writes to it or it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Cat, Does, after, canonical, check_pass, check_unchanged, image, seeded, text, trained
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.frozen import evaluation_copy
from fxcompress.passes import Freeze, MergeDuplicates, RemoveDisabled
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Quantize

BEFORE = """
    input %x
    %x_quantizer = compression.x_quantizer:Quantizer(%x)
    %flatten = flatten(%x_quantizer, 1)
    %flatten_1 = flatten(%x_quantizer, 1)
    %mul = mul(%flatten, %flatten_1)
    output %mul
"""
AFTER = """
    input %x
    %x_quantizer = compression.x_quantizer:Quantizer(%x)
    %flatten = flatten(%x_quantizer, 1)
    %mul = mul(%flatten, %flatten)
    output %mul
"""
TWICE = """
    input %x
    %layer_weight = layer.weight
    %layer_bias = layer.bias
    %layer = conv2d(%x, %layer_weight, %layer_bias, (1, 1), (0, 0), (1, 1), 1)
    %relu = relu(%layer)
    %layer_1 = conv2d(%x, %layer_weight, %layer_bias, (1, 1), (0, 0), (1, 1), 1)
    %relu_1 = relu(%layer_1)
    %add = add(%relu, %relu_1)
    output %add
"""
ONCE = """
    input %x
    %layer_weight = layer.weight
    %layer_bias = layer.bias
    %layer = conv2d(%x, %layer_weight, %layer_bias, (1, 1), (0, 0), (1, 1), 1)
    %relu = relu(%layer)
    %add = add(%relu, %relu)
    output %add
"""
DIFFERENT = """
    input %x
    %flatten = flatten(%x, 1)
    %sum_1 = .sum(%flatten)
    %flatten_1 = flatten(%x, 2)
    %sum_2 = .sum(%flatten_1)
    %mul = mul(%sum_1, %sum_2)
    output %mul
"""


def evaluated(forward: Callable[[Any, Tensor], Tensor], layer: nn.Module | None = None) -> GraphModule:
    """An evaluation copy of a net that does this."""
    return evaluation_copy(canonical(Does(forward, layer), image()))


def flattened_twice() -> GraphModule:
    """An evaluation copy of a net that flattens its quantized input twice."""
    rule = Quantize(target="activation", bits=8, match={"name": "x"})
    return evaluation_copy(trained(Does(lambda m, x: x.flatten(1) * x.flatten(1)), [rule], image()))


def conv() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(3, 2, 1)


def test_merges_two_flattens_of_one_quantized_tensor() -> None:
    check_pass(flattened_twice(), MergeDuplicates(), before=BEFORE, after=AFTER, example=image())


def test_merges_a_convolution_called_twice_and_what_follows_from_it() -> None:
    gm = evaluated(lambda m, x: torch.relu(m.layer(x)) + torch.relu(m.layer(x)), conv())
    check_pass(gm, MergeDuplicates(), before=TWICE, after=ONCE, example=image())


def test_merges_constants_that_are_read_twice() -> None:
    gm = after([RemoveDisabled(), Freeze()], trained(seeded(Cat), "Q8(f)", image()))
    expected = gm(image())
    scale = " = compression.a_quantizer_constants.scale"
    assert render(gm).count(scale) == 2
    assert run(gm, [MergeDuplicates()])
    assert render(gm).count(scale) == 1
    assert torch.equal(gm(image()), expected)
    assert not run(gm, [MergeDuplicates()])


@pytest.mark.parametrize(
    "layer", [nn.LeakyReLU(0.1), nn.Softplus(), nn.GroupNorm(1, 3)], ids=lambda m: type(m).__name__
)
def test_merges_a_module_called_twice(layer: nn.Module) -> None:
    gm = evaluated(lambda m, x: m.layer(x) * m.layer(x), layer)
    expected = gm(image())
    assert run(gm, [MergeDuplicates()])
    assert render(gm).count("= layer:") == 1
    assert torch.equal(gm(image()), expected)


def test_leaves_alone_what_differs_in_an_argument() -> None:
    gm = evaluated(lambda m, x: x.flatten(1).sum() * x.flatten(2).sum())
    check_unchanged(gm, MergeDuplicates(), DIFFERENT)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (y := x * 2, y.add_(1), y.add_(1), y)[-1],
        lambda m, x: (y := x * 2, z := x * 2, y.add_(1), y + z)[-1],
        lambda m, x: (y := x * 2, z := torch.relu(y), y.sub_(1), z + torch.relu(y))[-1],
        lambda m, x: (y := x * 2, F.relu(y, inplace=True), F.relu(y, inplace=True), y)[-1],
        lambda m, x: (y := x * 2, z := x * 2, m.layer(y), y + z)[-1],
        pytest.param(lambda m, x: (y := x * 2, z := x * 2, y.flatten(1).add_(1), y + z)[-1]),
        pytest.param(lambda m, x: (y := x * 2, z := torch.exp(y), y.flatten(1).add_(1), z + torch.exp(y))[-1]),
    ],
    ids=["writers", "written", "read before and after", "functions", "modules", "views", "views read"],
)
def test_leaves_alone_what_writes_in_place_and_what_is_written(forward: Callable[[Any, Tensor], Tensor]) -> None:
    gm = evaluated(forward, nn.ReLU(inplace=True))
    check_unchanged(gm, MergeDuplicates(), render(gm))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda bn: bn, 1),
        (lambda bn: setattr(bn, "momentum", 0.3), 1),
        (lambda bn: setattr(bn, "eps", 0.3), 2),
        (lambda bn: bn.running_mean.add_(1), 2),
        (lambda bn: bn.weight.data.mul_(2), 2),
    ],
    ids=["equal", "momentum", "eps", "mean", "weight"],
)
def test_modules_of_equal_settings_and_tensors_are_one(change: Callable[[Any], Any], left: int) -> None:
    gm = evaluated(lambda m, x: m.layer[0](x) + m.layer[1](x), nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    change(gm.get_submodule("layer.1"))
    run(gm, [MergeDuplicates()])
    assert sum(node.op == "call_module" for node in gm.graph.nodes) == left


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.rand_like(x) + torch.rand_like(x),
        lambda m, x: torch.randn_like(x) + torch.randn_like(x),
        lambda m, x: F.dropout(x, 0.5, True) + F.dropout(x, 0.5, True),
        lambda m, x: torch.bernoulli(x) + torch.bernoulli(x),
        lambda m, x: torch.poisson(x) + torch.poisson(x),
        pytest.param(lambda m, x: F.gumbel_softmax(x) + F.gumbel_softmax(x)),
        pytest.param(lambda m, x: F.rrelu(x, training=True) + F.rrelu(x, training=True)),
    ],
    ids=["rand_like", "randn_like", "dropout", "bernoulli", "poisson", "gumbel_softmax", "rrelu"],
)
def test_leaves_alone_what_is_drawn(forward: Callable[[Any, Tensor], Tensor]) -> None:
    gm = evaluated(forward)
    check_unchanged(gm, MergeDuplicates(), render(gm))


def test_refuses_training_mode() -> None:
    gm = flattened_twice().train()
    with pytest.raises(PassError, match=r"'merge-duplicates' failed .* the net is in training mode; merge in a copy"):
        run(gm, [MergeDuplicates()])
    assert render(gm) == text(BEFORE)


def test_refuses_a_result_with_a_duplicate_left() -> None:
    with pytest.raises(PassError, match="two nodes still compute the same"):
        MergeDuplicates().ensures(flattened_twice())
