"""What never started, and what does nothing in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import Mlp, canonical, check_pass, check_unchanged, enable, image, rows, seeded
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.frozen import evaluation_copy
from fxcompress.passes import PruneActivations, PruneWeights, QuantizeActivations, RemoveDisabled
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Prune, Quantize

PRUNE = Prune(target="weight", sparsity=0.5)
BEFORE = """
    input %x
    %x_quantizer = compression.x_quantizer:Quantizer(%x)
    %fc1_weight = fc1.weight
    %fc1_weight_pruner = compression.fc1.weight_pruner:Pruner(%fc1_weight)
    %fc1_bias = fc1.bias
    %fc1 = linear(%x_quantizer, %fc1_weight_pruner, %fc1_bias)
    %relu = relu:ReLU(%fc1)
    %relu_pruner = compression.relu_pruner:Pruner(%relu)
    %drop = drop:Dropout(%relu_pruner)
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
    %fc2_weight = fc2.weight
    %fc2_bias = fc2.bias
    %fc2 = linear(%relu, %fc2_weight, %fc2_bias)
    output %fc2
"""
ENABLED = BEFORE.replace("    %drop = drop:Dropout(%relu_pruner)\n", "").replace("%drop", "%relu_pruner")


def inserted(on: bool) -> GraphModule:
    """An evaluation copy of the net with a pruner and two quantizers."""
    net = canonical(seeded(Mlp), rows())
    quantize = QuantizeActivations({"x": Quantize(target="activation", bits=8)})
    run(net, [PruneWeights({"fc1.weight": PRUNE}), PruneActivations({"relu": PRUNE}), quantize])
    if on:
        enable(net)
    return evaluation_copy(net)


def test_removes_what_is_disabled_and_dropout() -> None:
    check_pass(inserted(on=False), RemoveDisabled(), before=BEFORE, after=AFTER, example=rows())


def test_leaves_alone_what_is_enabled() -> None:
    gm = inserted(on=True)
    run(gm, [RemoveDisabled()])
    check_unchanged(gm, RemoveDisabled(), ENABLED)


def test_removes_the_checks_of_arguments() -> None:
    class Scaled(Mlp):
        def forward(self, x: Tensor, factor: int = 2) -> Tensor:
            batch, _ = x.shape
            return super().forward(x) * (factor if batch > 3 else 1)

    gm = evaluation_copy(canonical(seeded(Scaled), {"x": rows(), "factor": 3}))
    expected = gm(rows(), 3)
    assert "assume(" in render(gm)
    assert "assume_length(" in render(gm)
    assert run(gm, [RemoveDisabled()])
    assert "assume" not in render(gm)
    assert "shape" not in render(gm)
    assert torch.equal(gm(rows(), 3), expected)
    assert not run(gm, [RemoveDisabled()])


def test_refuses_a_result_with_a_disabled_pruner() -> None:
    with pytest.raises(PassError, match=r"'compression\.x_quantizer' never started and is still there"):
        RemoveDisabled().ensures(inserted(on=False))


@pytest.mark.parametrize("bump", [lambda y: y.add_(1), nn.ReLU(inplace=True)])
def test_keeps_an_in_place_call_whose_result_is_unused(bump: Callable[[Tensor], Tensor]) -> None:
    class Bump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bump = bump

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            self.bump(y)
            return y

    gm = evaluation_copy(canonical(Bump(), image()))
    run(gm, [RemoveDisabled()])
    assert torch.equal(gm(image()), Bump()(image()))
