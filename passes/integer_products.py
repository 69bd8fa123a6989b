"""Compute products on integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import drop_dead_code, insert_constants, replace, site, tensor_at
from fxcompress.grid import broadcast
from fxcompress.integer import INTEGER, needs_float64
from fxcompress.operators import PRODUCTS, bias_of, channel_axis, is_activation_product, weight_of
from fxcompress.placement import adds_in_int32, grid_of, largest_input
from fxcompress.qdq import DEQUANTIZE, is_blockwise


@dataclass(frozen=True)
class IntegerProducts:
    """Compute every fully quantized product (of activation and weight, or of two activations) on integer-valued operands and scale its exact sums afterwards.

    Before:  %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias_1)
    After:   %fc = integer_linear(%x_quantizer, %fc_weight_integers, %fc_bias_integers,
                 (%compression_x_quantizer_constants_scale, %fc_weight_scale), False)

    Requires: weights, activations and biases are frozen.
    Ensures:  no product of an integer weight and an input on a grid is left in float.
    Leaves alone: products with a float operand.
    """

    name: ClassVar[str] = "integer-products"

    def requires(self, gm: GraphModule) -> None:
        """Nothing: what is float is left alone."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Replace each product."""
        todo = [n for n in gm.graph.nodes if _is_quantized(gm, n)]
        for product in todo:
            _replace(gm, product)
        return drop_dead_code(gm) or bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a quantized product is left in float."""
        for node in gm.graph.nodes:
            if _is_quantized(gm, node):
                raise PassError(f"product '{site(node)}' has integer operands and is computed in float")


def _is_quantized(gm: GraphModule, node: Node) -> bool:
    if is_activation_product(node):
        return all(grid_of(gm, a) is not None for a in node.args)
    if node.target not in PRODUCTS:
        return False
    weight = weight_of(node)
    if weight.target is not DEQUANTIZE or is_blockwise(weight) or grid_of(gm, node.args[0]) is None:
        return False
    bias = bias_of(node)
    return bias is None or bias.target is DEQUANTIZE


def _replace(gm: GraphModule, product: Node) -> None:
    if is_activation_product(product):
        scales = tuple(grid_of(gm, a).args[1] for a in product.args)  # type: ignore[union-attr]
        replace(product, INTEGER[product.target], (*product.args, scales))
        return
    grid: Any = grid_of(gm, product.args[0])
    weight, weight_scale = _without_zero_point(gm, product), weight_of(product).args[1]
    bias_node = bias_of(product)
    is_integer = bias_node is not None and bias_node.target is DEQUANTIZE and adds_in_int32(gm, product)
    bias = bias_node.args[0] if is_integer else bias_node
    input_scale = grid.args[1]
    bias_values = tensor_at(gm, str(bias.target)) if is_integer else None
    wide = needs_float64(
        tensor_at(gm, str(weight.target)), bias_values, channel_axis(product), largest_input(gm, product)
    )
    function = INTEGER[product.target]
    rest = product.args[3:]
    replace(product, function, (product.args[0], weight, bias, (input_scale, weight_scale), wide, *rest))


def _without_zero_point(gm: GraphModule, product: Node) -> Any:
    """The node of a weight's integers less their zero points."""
    stored, _, zero = weight_of(product).args[:3]
    zero_point = tensor_at(gm, str(zero.target))
    if not bool(zero_point.int().any()):
        return stored
    integers = tensor_at(gm, str(stored.target)).int()
    spread = broadcast(zero_point.int(), channel_axis(product) if zero_point.ndim else None, integers.ndim)
    return insert_constants(gm, product, site(product), {"weight_integers": integers - spread})[0]
