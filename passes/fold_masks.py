"""Fold masks of channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import bypass, drop_dead_code, insert_constants, module_of, site, tensor_at
from fxcompress.grid import broadcast
from fxcompress.operators import (
    CONVOLUTIONS,
    RELU6S,
    RELUS,
    bias_of,
    called,
    channel_axis,
    is_batch_norm,
    shape_of,
    weight_of,
)
from fxcompress.placement import is_masking
from fxcompress.qdq import DEQUANTIZE, QUANTIZE_DEQUANTIZE


@dataclass(frozen=True)
class FoldMasks:
    """Fold a mask of whole channels into what yields them, so that nothing is left to compute.

    Zero stays zero through ReLU and on every grid, so the rows of a convolution's integers and its bias do the same. Where
    batch norm was not folded, its weight and bias do.

    Before:  %conv = conv2d(%x_quantizer, %conv_folded_weight, %conv_folded_bias, (1, 1), (0, 0), (1, 1), 1)
             %bn_quantizer = quantize_dequantize(%conv, %compression_bn_quantizer_constants_scale,
                 %compression_bn_quantizer_constants_zero_point, 0, 255)
             %bn_channels = mul(%bn_quantizer, %bn_channels_mask)
    After:   %conv = conv2d(%x_quantizer, %conv_masked_weight, %conv_masked_bias, (1, 1), (0, 0), (1, 1), 1)
             %bn_quantizer = quantize_dequantize(%conv, %compression_bn_quantizer_constants_scale,
                 %compression_bn_quantizer_constants_zero_point, 0, 255)

    Requires: masks are frozen, batch norms folded.
    Ensures:  no mask of channels is multiplied with what a convolution or batch norm alone yields.
    Leaves alone: masks of single elements, and of channels that something else reads unmasked.
    """

    name: ClassVar[str] = "fold-masks"

    def requires(self, gm: GraphModule) -> None:
        """Nothing: what is not frozen is left alone."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Fold each mask into its channels' source."""
        todo = list(_foldable(gm))
        for masking, source, kept in todo:
            if is_batch_norm(gm, source):
                _mask_norm(cast(nn.Module, module_of(gm, source)), kept)
            else:
                _mask_product(gm, source, kept)
            bypass(gm, masking)
        return drop_dead_code(gm) or bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for masking, _, _ in _foldable(gm):
            raise PassError(f"the mask '{site(masking)}' could be folded and was not")


def _foldable(gm: GraphModule) -> Iterator[tuple[Node, Node, Tensor]]:
    """Each multiplication by a mask of channels, what yields the channels, and which stay."""
    for node in gm.graph.nodes:
        if not is_masking(node):
            continue
        mask = tensor_at(gm, str(node.args[1].args[0].target))
        source = _source(gm, node.args[0])
        if source is not None and len(mask) == mask.numel() and mask.ndim == len(shape_of(node)) - 1:
            yield node, source, mask.flatten().bool()


def _source(gm: GraphModule, node: Node) -> Node | None:
    while len(node.users) == 1:
        if node.target in CONVOLUTIONS:
            return node if weight_of(node).target is DEQUANTIZE and _has_stored_bias(node) else None
        if is_batch_norm(gm, node):
            module: Any = module_of(gm, node)
            return node if module.affine and _calls(gm, node) == 1 else None
        if node.target is not QUANTIZE_DEQUANTIZE and called(gm, node) not in RELUS | RELU6S:
            return None
        node = node.args[0]  # type: ignore[assignment]
    return None


def _has_stored_bias(product: Node) -> bool:
    bias = bias_of(product)
    return bias is None or bias.op == "get_attr"


def _calls(gm: GraphModule, node: Node) -> int:
    return sum(n.op == "call_module" and n.target == node.target for n in gm.graph.nodes)


@torch.no_grad()
def _mask_norm(module: Any, kept: Tensor) -> None:
    # The graph is a copy's, and so are its modules.
    module.weight.mul_(kept)
    module.bias.mul_(kept)


def _mask_product(gm: GraphModule, product: Node, kept: Tensor) -> None:
    weight, axis = weight_of(product), channel_axis(product)
    integers, zero = (tensor_at(gm, str(weight.args[i].target)) for i in (0, 2))
    zeros = broadcast(zero, axis if zero.ndim else None, integers.ndim)
    rows = broadcast(kept, axis, integers.ndim)
    constants = {"masked_integers": torch.where(rows, integers, zeros)}
    bias = bias_of(product)
    if bias is not None:
        value = tensor_at(gm, str(bias.target)).detach()
        constants["masked_bias"] = torch.where(kept, value, torch.zeros_like(value))
    stored, *new_bias = insert_constants(gm, weight, site(product), constants)
    with gm.graph.inserting_before(product):
        masked = gm.graph.node_copy(weight)
    masked.args = (stored, *weight.args[1:])
    masked.name = f"{product.name}_masked_weight"
    product.args = (product.args[0], masked, new_bias[0] if new_bias else None, *product.args[3:])
