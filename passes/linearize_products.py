"""Linearize products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from fxcompress.errors import PassError
from fxcompress.graph import insert_function_before, replace, site
from fxcompress.operators import PRODUCTS, bias_of, channel_axis, input_of, is_product, shape_of, weight_of


@dataclass(frozen=True)
class LinearizeProducts:
    """Spell matrix products with a weight of two axes on the right as linear layers, which runtimes and later passes know.

    Before:  %addmm = addmm(%bias, %x, %weight_quantizer)
    After:   %addmm_transposed = transpose(%weight_quantizer, 0, 1)
             %addmm = linear(%x, %addmm_transposed, %bias)

    Ensures:  no matrix product with such a weight is left.
    Leaves alone: weights on the left, or with more axes.
    """

    name: ClassVar[str] = "linearize-products"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Replace each product."""
        todo = [n for n in gm.graph.nodes if _is_linear(n)]
        for product in todo:
            weight, bias = weight_of(product), bias_of(product)
            name = f"{product.name}_transposed"
            transposed = insert_function_before(gm, product, torch.transpose, (weight, 0, 1), name)
            empty = torch.empty(shape_of(weight), device="meta").t()
            transposed.meta.update(weight.meta, constant=True, tensor_meta=_extract_tensor_metadata(empty))
            replace(product, F.linear, (input_of(product), transposed, *([] if bias is None else [bias])))
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for node in gm.graph.nodes:
            if _is_linear(node):
                raise PassError(f"'{site(node)}' is a matrix product with a weight on the right")


def _is_linear(node: Node) -> bool:
    if not is_product(node) or node.target in PRODUCTS:
        return False
    weight, bias = weight_of(node), bias_of(node)
    takes_bias = bias is None or (isinstance(bias, Node) and len(shape_of(bias)) == 1)
    return len(shape_of(weight)) == 2 and channel_axis(node) == 1 and takes_bias
