"""Fold batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import bypass, drop_dead_code, insert_constants, insert_function_before, site, tensor_at
from fxcompress.grid import broadcast
from fxcompress.operators import argument, channel_axis, weight_of
from fxcompress.placement import folded_product
from fxcompress.qdq import DEQUANTIZE, is_blockwise


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold batch norms into the scales and the bias of the product before them; the integers stay.

    With sigma = sqrt(variance + eps), in float64: a channel's scale becomes float32(scale |gamma| / sigma), its integers
    are negated where gamma is negative and zero where it is zero (its scale then stays as it was), its bias becomes
    beta + (bias - mean) gamma / sigma.

    Before:  %conv_weight_quantizer = dequantize(%conv_weight_integers, %conv_weight_scale, %conv_weight_zero_point, 0)
             %conv = conv2d(%x, %conv_weight_quantizer, None, (1, 1), (0, 0), (1, 1), 1)
             %bn = bn:BatchNorm2d(%conv)
    After:   %conv_folded_weight = dequantize(%conv_folded_integers, %conv_folded_scale, %conv_folded_zero_point, 0)
             %conv = conv2d(%x, %conv_folded_weight, %conv_folded_bias, (1, 1), (0, 0), (1, 1), 1)

    Requires: evaluation mode; weights are frozen.
    Ensures:  no batch norm with statistics is the only user of a product with an integer weight.
    Leaves alone: products with float weights, and with scales for blocks; batch norms on batch statistics; grouped transposed convolutions, whose
              scales are shared by channels of several groups; linear layers on more than two axes, whose channels
              are not the batch norm's.
    """

    name: ClassVar[str] = "fold-batchnorm"

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError in training mode."""
        if gm.training:
            raise PassError("the net is in training mode; batch norm folds in evaluation mode only")

    def rewrite(self, gm: GraphModule) -> bool:
        """Fold each pair."""
        todo = [n for n in gm.graph.nodes if _folds(gm, n)]
        for norm in todo:
            _fold(gm, norm.args[0], norm)
        return drop_dead_code(gm) or bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a pair is left."""
        for node in gm.graph.nodes:
            if _folds(gm, node):
                raise PassError(f"batch norm '{site(node)}' could be folded and was not")


def _folds(gm: GraphModule, norm: Node) -> bool:
    product = folded_product(gm, norm)
    if product is None or weight_of(product).target is not DEQUANTIZE:
        return False
    return not is_blockwise(weight_of(product))


def _fold(gm: GraphModule, product: Node, norm: Node) -> None:
    module: Any = gm.get_submodule(str(norm.target))
    integers, scale, zero_point = (tensor_at(gm, str(n.target)) for n in weight_of(product).args[:3])
    how = weight_of(product).args[4:]
    axis = channel_axis(product)
    sigma = torch.sqrt(module.running_var.double() + module.eps)
    gamma = torch.ones_like(sigma) if module.weight is None else module.weight.detach().double()
    bias_node = argument(product, 2, "bias")
    bias = torch.zeros_like(sigma) if bias_node is None else tensor_at(gm, str(bias_node.target)).detach().double()
    shift = 0.0 if module.bias is None else module.bias.detach().double()
    zeros = zero_point.expand(sigma.shape)
    folded = {
        "folded_integers": _signed(integers, zeros, torch.sign(gamma), axis, how),
        "folded_scale": _folded_scale(scale, gamma, sigma),
        "folded_zero_point": _signed(zeros, zeros, torch.where(gamma < 0, -1, 1), 0, how),
        "folded_bias": (shift + (bias - module.running_mean.double()) * gamma / sigma).float(),
    }
    *weight, new_bias = insert_constants(gm, product, site(product), folded)
    dequantized = insert_function_before(
        gm, product, DEQUANTIZE, (*weight, axis, *how), f"{product.name}_folded_weight"
    )
    dequantized.meta.update(weight_of(product).meta)
    rest = product.args[3:]
    product.args = (product.args[0], dequantized, new_bias, *rest)
    product.kwargs = {k: v for k, v in product.kwargs.items() if k not in ("weight", "bias")}
    product.meta["tensor_meta"] = norm.meta["tensor_meta"]
    bypass(gm, norm)


def _signed(integers: Tensor, zeros: Tensor, sign: Tensor, axis: int, how: tuple[Any, ...]) -> Tensor:
    """The integers of sign times the values: negated ones lie as far below the middle of the grid as they lay above."""
    bits = how[0] if how else 8 * integers.element_size()
    mirrored = (0 if integers.dtype.is_signed else 2**bits) - integers.int()
    sign, zeros = broadcast(sign, axis, integers.ndim), broadcast(zeros.int(), axis, integers.ndim)
    return torch.where(sign < 0, mirrored, torch.where(sign > 0, integers.int(), zeros)).to(integers.dtype)


def _folded_scale(scale: Tensor, gamma: Tensor, sigma: Tensor) -> Tensor:
    scaled = (scale.double() * gamma.abs() / sigma).float().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(gamma == 0, scale.expand_as(scaled), scaled)
