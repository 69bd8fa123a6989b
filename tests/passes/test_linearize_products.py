"""Matrix products with a weight become linear layers."""

from __future__ import annotations

import torch
from helpers import check_pass, check_unchanged, evaluation_copy, rows, seeded, trained
from torch import Tensor, nn

from fxcompress.passes import LinearizeProducts


class Product(nn.Module):
    """A packed bias and a weight on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Left(Product):
    """A weight on the left."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x[:2]


BEFORE = """
    input %x
    %bias = bias
    %weight = weight
    %weight_quantizer = compression.weight_quantizer:Quantizer(%weight)
    %addmm = addmm(%bias, %x, %weight_quantizer)
    output %addmm
"""
AFTER = """
    input %x
    %bias = bias
    %weight = weight
    %weight_quantizer = compression.weight_quantizer:Quantizer(%weight)
    %addmm_transposed = transpose(%weight_quantizer, 0, 1)
    %addmm = linear(%x, %addmm_transposed, %bias)
    output %addmm
"""


def test_spells_products_as_linear_layers() -> None:
    gm = evaluation_copy(trained(seeded(Product), "Q8(w)@1", rows()))
    check_pass(gm, LinearizeProducts(), before=BEFORE, after=AFTER, example=rows())


def test_leaves_weights_on_the_left_alone() -> None:
    gm = evaluation_copy(trained(seeded(Left), "Q8(w)@1", rows()))
    check_unchanged(
        gm,
        LinearizeProducts(),
        """
        input %x
        %weight = weight
        %weight_quantizer = compression.weight_quantizer:Quantizer(%weight)
        %getitem = getitem(%x, slice(None, 2, None))
        %matmul = matmul(%weight_quantizer, %getitem)
        output %matmul
        """,
    )
