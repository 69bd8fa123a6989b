"""Flatten products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import insert_function_after, insert_function_before, site
from fxcompress.operators import is_pointwise, shape_of, weight_of
from fxcompress.qdq import DEQUANTIZE, QUANTIZE_DEQUANTIZE


@dataclass(frozen=True)
class FlattenProducts:
    """Compute linear layers on more than two axes as ones on two, with the other axes laid out behind each other.

    That is one `Gemm`, which takes the int32 bias; a matrix product on more axes would leave the bias to an addition in
    float. The axes come back behind what is computed element by element, and not at all in front of the next such layer.

    Before:  %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias_1)
             %fc_quantizer = quantize_dequantize(%fc, %compression_fc_quantizer_constants_scale,
                 %compression_fc_quantizer_constants_zero_point, 0, 255)
             output %fc_quantizer
    After:   %fc_size = .size(%x_quantizer, 1)
             %fc_flat = flatten(%x_quantizer, 0, -2)
             %fc = linear(%fc_flat, %fc_weight_quantizer, %fc_bias_1)
             %fc_quantizer = quantize_dequantize(%fc, %compression_fc_quantizer_constants_scale,
                 %compression_fc_quantizer_constants_zero_point, 0, 255)
             %fc_unflat = reshape(%fc_quantizer, (-1, %fc_size, 2))
             output %fc_unflat

    Requires: weights are frozen.
    Ensures:  no linear layer with an integer weight has more than two axes.
    Leaves alone: layers with float weights.
    """

    name: ClassVar[str] = "flatten-products"

    def requires(self, gm: GraphModule) -> None:
        """Nothing: what is not frozen is left alone."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Flatten each layer's input, and give its unit's output the axes back."""
        todo = [n for n in gm.graph.nodes if _has_more_axes(n)]
        given_back: dict[Node, Node] = {}
        flattened: dict[Node, tuple[list[Any], Node]] = {}
        for product in todo:
            _flatten(gm, product, given_back, flattened)
        for back in given_back:
            if not back.users:
                gm.graph.erase_node(back)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for node in gm.graph.nodes:
            if _has_more_axes(node):
                raise PassError(f"linear layer '{site(node)}' has {len(shape_of(node))} axes")


def _has_more_axes(node: Node) -> bool:
    is_linear = node.target is F.linear and weight_of(node).target is DEQUANTIZE
    return is_linear and len(shape_of(node)) > 2


def _flatten(
    gm: GraphModule, product: Node, given_back: dict[Node, Node], flattened: dict[Node, tuple[list[Any], Node]]
) -> None:
    x: Any = product.args[0]
    *lead, channels = shape_of(product)
    sizes: list[Any]
    if x in given_back and shape_of(x)[:-1] == tuple(lead):
        sizes, flat = list(x.args[1])[:-1], given_back[x]
    elif x in flattened:  # as for queries, keys and values
        sizes, flat = flattened[x]
    else:
        # Sizes are asked for and not written down: any axis may be the batch, or a part of it.
        sizes = [-1, *(_call_size(product, x, axis) for axis in range(1, len(lead)))]
        flat = insert_function_before(gm, product, torch.flatten, (x, 0, -2), f"{product.name}_flat")
        flat.meta.update(x.meta, tensor_meta=_flat(x.meta["tensor_meta"]))
        flattened[x] = sizes, flat
    product.args = (flat, *product.args[1:])
    product.meta["tensor_meta"] = _flat(product.meta["tensor_meta"])
    end = product
    while (user := _sole_user(end)) is not None and _goes_along(gm, user, end):
        end = user
        end.meta["tensor_meta"] = _flat(end.meta["tensor_meta"])
    shape = (*sizes, channels)
    back = insert_function_after(gm, end, torch.reshape, (shape,), f"{product.name}_unflat")
    back.meta["tensor_meta"] = end.meta["tensor_meta"]._replace(shape=torch.Size((*lead, channels)))
    given_back[back] = end


def _call_size(before: Node, x: Node, axis: int) -> Node:
    with before.graph.inserting_before(before):
        return before.graph.create_node("call_method", "size", (x, axis), name=f"{before.name}_size")


def _flat(meta: Any) -> Any:
    *lead, last = meta.shape
    return meta._replace(shape=torch.Size((torch.Size(lead).numel(), last)), stride=(last, 1))


def _sole_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _goes_along(gm: GraphModule, user: Node, end: Node) -> bool:
    """Whether `user` computes each element of `end` by itself, and nothing else."""
    return user.args[:1] == (end,) and (user.target is QUANTIZE_DEQUANTIZE or is_pointwise(gm, user))
