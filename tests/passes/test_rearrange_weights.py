"""Stored integers move, not what is dequantized from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import Fc, after, check_pass, check_unchanged, constants, rows, seeded, trained
from torch import Tensor, nn

from fxcompress.passes import FoldConstants, Freeze, LinearizeProducts, RearrangeWeights, RemoveDisabled

FROZEN = (RemoveDisabled(), LinearizeProducts(), FoldConstants(), Freeze())


class Product(nn.Module):
    """A weight on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Parts(nn.Module):
    """Two products with the halves of one weight, and one with both the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.weight.chunk(2)
        return F.linear(x, a).sum(1, True) + F.linear(x, b).sum(1, True) + F.linear(x, torch.cat([b, a]))


class SideBySide(nn.Module):
    """A weight whose rows are made of two weights, of which each has its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.cat([self.a, self.b], 1))


BEFORE = """
    input %x
    %weight_integers = weight_integers
    %weight_scale = weight_scale
    %weight_zero_point = weight_zero_point
    %weight_quantizer = dequantize(%weight_integers, %weight_scale, %weight_zero_point, 1)
    %matmul_transposed = transpose(%weight_quantizer, 0, 1)
    %matmul = linear(%x, %matmul_transposed)
    output %matmul
"""
AFTER = """
    input %x
    %matmul_weight_integers = matmul.weight_integers
    %matmul_weight_scale = matmul.weight_scale
    %matmul_weight_zero_point = matmul.weight_zero_point
    %matmul_weight = dequantize(%matmul_weight_integers, %matmul_weight_scale, %matmul_weight_zero_point, 0)
    %matmul = linear(%x, %matmul_weight)
    output %matmul
"""


def test_transposes_integers() -> None:
    gm = after(FROZEN, trained(seeded(Product), "Q8(w)@1", rows()))
    # The product stays in float, and a matrix that lies otherwise may be added up in another order.
    check_pass(gm, RearrangeWeights(), before=BEFORE, after=AFTER, example=rows(), tolerance=1e-6)


def test_splits_and_joins_integers_with_their_scales() -> None:
    net = trained(seeded(Parts), "P0.5(w)@1 -> Q8(w)@2", rows())
    gm = after([*FROZEN, RearrangeWeights()], net)
    assert torch.equal(gm(rows()), net(rows()))
    quantizer = net.get_submodule("compression.weight_quantizer")
    joined = constants(gm, "linear_2")
    assert torch.equal(joined["weight_scale"], quantizer.scale[[2, 3, 0, 1]])
    assert torch.equal(constants(gm, "linear")["weight_scale"], quantizer.scale[:2])


def test_leaves_alone_what_needs_more_than_one_scale_a_channel() -> None:
    net = trained(seeded(SideBySide), "Q8(w)@1", rows())
    gm = after([*FROZEN, RearrangeWeights()], net)
    assert "weight_integers" not in constants(gm, "linear")
    assert torch.equal(gm(rows()), net(rows()))


def test_leaves_weights_that_do_not_move_alone() -> None:
    check_unchanged(
        after(FROZEN, trained(seeded(Fc), "Q8(w)@1", rows())),
        RearrangeWeights(),
        """
        input %x
        %fc_weight_integers = fc.weight_integers
        %fc_weight_scale = fc.weight_scale
        %fc_weight_zero_point = fc.weight_zero_point
        %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)
        %fc_bias = fc.bias
        %fc = linear(%x, %fc_weight_quantizer, %fc_bias)
        output %fc
        """,
    )
