"""Weights and biases that are computed from parameters are stored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Fc, after, check_pass, check_unchanged, rows, seeded, trained
from torch import Tensor, nn

from fxcompress.errors import PassError
from fxcompress.passes import FoldConstants, RemoveDisabled
from fxcompress.pipeline import run
from fxcompress.render import render


class Normed(nn.Module):
    """A weight and a bias that are computed from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.rand(2, 1))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias[:2])


BEFORE = """
    input %x
    %weight = weight
    %gain = gain
    %mul = mul(%weight, %gain)
    %linear_weight_quantizer = compression.linear.weight_quantizer:Quantizer(%mul)
    %bias = bias
    %getitem = getitem(%bias, slice(None, 2, None))
    %linear = linear(%x, %linear_weight_quantizer, %getitem)
    output %linear
"""
AFTER = """
    input %x
    %linear_weight_value = linear.weight_value
    %linear_weight_quantizer = compression.linear.weight_quantizer:Quantizer(%linear_weight_value)
    %linear_bias_value = linear.bias_value
    %linear = linear(%x, %linear_weight_quantizer, %linear_bias_value)
    output %linear
"""


def test_stores_what_is_computed() -> None:
    gm = after([RemoveDisabled()], trained(seeded(Normed), "Q8(w)@1", rows()))
    check_pass(gm, FoldConstants(), before=BEFORE, after=AFTER, example=rows())


def test_the_mask_and_the_scale_are_those_of_the_computed_weight() -> None:
    net = trained(seeded(Normed), "P0.5(w)@1 -> Q8(w)@2", rows())
    weight = (net.weight * net.gain).detach()
    mask = net.get_submodule("compression.linear.weight_pruner").mask
    assert int((~mask).sum()) == 3
    assert weight[~mask].abs().max() <= weight[mask].abs().min()
    scale = net.get_submodule("compression.linear.weight_quantizer").scale
    largest = (weight * mask).abs().amax(1)
    torch.testing.assert_close(scale[largest > 0], largest[largest > 0] / 127)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_weights(norm: object) -> None:
    layer = norm(nn.Linear(3, 2))  # type: ignore[operator]
    net = trained(nn.Sequential(layer), "P0.5(w)@1 -> Q8(w)@2", rows())
    gm = after([RemoveDisabled(), FoldConstants()], net)
    assert "%_0_weight_value = 0.weight_value" in render(gm)
    torch.testing.assert_close(gm(rows()), net(rows()), rtol=0, atol=0)


def test_leaves_stored_weights_alone() -> None:
    gm = after([RemoveDisabled()], trained(seeded(Fc), "Q8(w)@1", rows()))
    check_unchanged(
        gm,
        FoldConstants(),
        """
        input %x
        %fc_weight = fc.weight
        %fc_weight_quantizer = compression.fc.weight_quantizer:Quantizer(%fc_weight)
        %fc_bias = fc.bias
        %fc = linear(%x, %fc_weight_quantizer, %fc_bias)
        output %fc
        """,
    )


def test_refuses_training_mode() -> None:
    gm = after([RemoveDisabled()], trained(seeded(Normed), "Q8(w)@1", rows()))
    with pytest.raises(PassError, match="training mode"):
        run(gm.train(), [FoldConstants()])
