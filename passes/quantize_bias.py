"""Quantize biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.graph import insert_constants, insert_function_before, site, tensor_at
from fxcompress.grid import broadcast
from fxcompress.integer import per_output_channel
from fxcompress.operators import (
    PRODUCTS,
    RELU6S,
    RELUS,
    bias_of,
    called,
    channel_axis,
    input_of,
    is_product,
    is_value_preserving,
    weight_of,
)
from fxcompress.placement import LARGEST, adds_in_int32, grid_of, room_for_bias, stored_integers
from fxcompress.qdq import DEQUANTIZE, QUANTIZE_DEQUANTIZE

HALF = 0.5
"""Of a step of the output: what rounding there moves values by anyway."""


@dataclass(frozen=True)
class QuantizeBias:
    """Store biases as int32 on the grid of their product's sums, scale(input) scale(weight).

    Where a bias would leave int32, the weight's scale in that channel is raised until it fits and its integers are
    rounded anew; the change is noted in `gm.meta["notes"]`, and so is rounding that moves the output by steps of its own.

    Before:  %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias)
    After:   %fc_bias_1 = dequantize(%fc_bias_integers, %fc_bias_scale, None, 0)
             %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias_1)

    Requires: weights and activations are frozen.
    Products with scales for blocks, and those whose sums leave int32 without the bias, as those of 16-bit integers do, are
    computed in float: their bias gets a grid of its own, fine enough for its largest value. (A float bias between
    quantized operands would be put on the grid of the sums by ONNX Runtime, where it may saturate.)

    Leaves alone: products whose input lies on no grid or whose weight is float.
    """

    name: ClassVar[str] = "quantize-bias"

    def requires(self, gm: GraphModule) -> None:
        """Nothing: what is not frozen is left alone."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Quantize each bias."""
        todo = [n for n in gm.graph.nodes if is_product(n) and _has_float_bias(gm, n)]
        for product in todo:
            _quantize_bias(gm, product)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Nothing that the rewrite does not show."""


def _has_float_bias(gm: GraphModule, product: Node) -> bool:
    if product.target not in PRODUCTS:
        return False
    bias = bias_of(product)
    weight = weight_of(product)
    if weight.target is not DEQUANTIZE or grid_of(gm, input_of(product)) is None:
        return False
    return isinstance(bias, Node) and bias.op == "get_attr"


def _quantize_bias(gm: GraphModule, product: Node) -> None:
    if not adds_in_int32(gm, product):
        _store(gm, product, tensor_at(gm, str(bias_of(product).target)).detach(), None)
        return
    input_scale = tensor_at(gm, str(grid_of(gm, product.args[0]).args[1].target))  # type: ignore[union-attr]
    bias = tensor_at(gm, str(bias_of(product).target)).detach()
    scale = _weight_scale_that_fits(gm, product, bias, input_scale)
    bias_scale = (input_scale * per_output_channel(scale, len(bias))).clamp(min=torch.finfo(torch.float32).tiny)
    bias_scale = bias_scale.expand_as(bias).clone()
    _note_coarse(gm, product, (_store(gm, product, bias, bias_scale) - bias.double()).abs())


def _note_coarse(gm: GraphModule, product: Node, moved: Tensor) -> None:
    """Say where a bias was `moved` by more than half a step of the quantizer behind. Batch norm makes the steps of the sums
    so large where a channel's inputs are nearly dead."""
    if (step := _output_step(gm, product)) is None:
        return
    steps = moved / step
    if channels := int((steps > HALF).sum()):
        gm.meta.setdefault("notes", []).append(
            f"'{site(product)}': the bias of {channels} channels is rounded by up to {float(steps.max()):.1f} steps of the "
            "output, since the steps of its sums are larger"
        )


def _output_step(gm: GraphModule, product: Node) -> float | None:
    """The scale of the quantizer that alone reads a product, behind what keeps values or cuts them off."""
    node = product
    while len(node.users) == 1:
        (node,) = node.users
        if node.target is QUANTIZE_DEQUANTIZE:
            return float(tensor_at(gm, str(node.args[1].target)))  # type: ignore[union-attr]
        if not (is_value_preserving(gm, node) or called(gm, node) in RELUS | RELU6S):
            return None
    return None


def _store(gm: GraphModule, product: Node, bias: Tensor, scale: Tensor | None) -> Tensor:
    """Store `bias` as int32 on a grid of this scale; None: of its own, fine enough for its largest value. Returns what
    is stored, float64."""
    if scale is None:
        scale = (bias.abs().amax() / 2**30).clamp(min=torch.finfo(torch.float32).tiny).expand_as(bias).clone()
    integers = torch.round(bias.double() / scale.double()).clamp(-LARGEST, LARGEST).to(torch.int32)
    nodes = insert_constants(gm, product, site(product), {"bias_integers": integers, "bias_scale": scale})
    dequantized = insert_function_before(gm, product, DEQUANTIZE, (*nodes, None, 0), f"{product.name}_bias")
    product.args = (*product.args[:2], dequantized, *product.args[3:])
    product.kwargs = {k: v for k, v in product.kwargs.items() if k != "bias"}
    return integers * scale.double()


def _weight_scale_that_fits(gm: GraphModule, product: Node, bias: Tensor, input_scale: Tensor) -> Tensor:
    weight = weight_of(product)
    (integers, zeros), scale = stored_integers(gm, product), tensor_at(gm, str(weight.args[1].target))
    least = bias.double().abs() / (input_scale.double() * max(room_for_bias(gm, product), 1.0)) * (1 + 2.0**-20)
    least = least.view(-1, len(scale)).amax(0) if scale.ndim else least.amax()
    if not bool((scale < least).any()):
        return scale
    raised = torch.maximum(scale.double(), least).float()
    axis = channel_axis(product)
    ratio = broadcast(scale.double() / raised.double(), axis if scale.ndim else None, integers.ndim)
    dtype = tensor_at(gm, str(weight.args[0].target)).dtype
    rounded = (torch.round((integers - zeros).double() * ratio) + zeros).to(dtype)
    zero_point = tensor_at(gm, str(weight.args[2].target)).clone()
    constants = {"raised_integers": rounded, "raised_scale": raised, "raised_zero_point": zero_point}
    nodes = insert_constants(gm, product, site(product), constants)
    how = weight.args[4:]
    new = insert_function_before(gm, product, DEQUANTIZE, (*nodes, axis, *how), f"{product.name}_raised_weight")
    new.meta.update(weight.meta)
    product.args = (product.args[0], new, *product.args[2:])
    channels = int((raised > scale).sum()) if scale.ndim else len(bias)
    gm.meta.setdefault("notes", []).append(
        f"'{site(product)}': the bias of {channels} channels leaves int32, so their weight scale was raised"
    )
    return raised
