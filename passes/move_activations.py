"""Move activation functions into their grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import bypass, site, tensor_at
from fxcompress.operators import RELU6S, called, is_fusible_activation
from fxcompress.qdq import QUANTIZE_DEQUANTIZE

EPSILON = 2.0**-23  # how far past 6 ONNX Runtime lets a grid reach when it drops a Clip


@dataclass(frozen=True)
class MoveActivations:
    """Compute an activation function that the grid's saturation does not do by itself with tighter bounds of the grid.

    ReLU is saturation where the zero point is the lowest integer, ReLU6 where the grid also ends by 6. Elsewhere, as with
    a scale shared by signed tensors, a runtime could not fuse the product before it. Rounding is monotone and keeps zero,
    so bounds at the integers of 0 and 6 give the same integers.

    Before:  %relu = relu:ReLU(%conv)
             %relu_quantizer = quantize_dequantize(%relu,
                 %compression_relu_quantizer_constants_scale, %compression_relu_quantizer_constants_zero_point, 0, 255)
    After:   %relu_quantizer = quantize_dequantize(%conv,
                 %compression_relu_quantizer_constants_scale, %compression_relu_quantizer_constants_zero_point, 128, 255)

    Requires: scales are frozen.
    Ensures:  every activation function right before a pair is done by the pair's saturation.
    Leaves alone: activation functions with other users.
    """

    name: ClassVar[str] = "move-activations"

    def requires(self, gm: GraphModule) -> None:
        """Nothing: what is not frozen is left alone."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Tighten the bounds and leave the function out."""
        todo = [n for n in gm.graph.nodes if _needs_function(gm, n)]
        for pair in todo:
            function = cast(Node, pair.args[0])
            pair.args = (*pair.args[:3], *_bounds(gm, function, pair))
            bypass(gm, function)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a function is left that its pair does not do."""
        for node in gm.graph.nodes:
            if _needs_function(gm, node):
                raise PassError(f"the grid of '{site(node)}' does not do its activation function")


def _needs_function(gm: GraphModule, pair: Node) -> bool:
    if pair.target is not QUANTIZE_DEQUANTIZE:
        return False
    function, scale_node, zero_node, qmin, qmax = cast(tuple[Node, Node, Node, int, int], pair.args)
    if not is_fusible_activation(gm, function) or len(function.users) != 1:
        return False
    scale, zero = tensor_at(gm, str(scale_node.target)), int(tensor_at(gm, str(zero_node.target)))
    passes_six = called(gm, function) in RELU6S and float(scale * (qmax - zero)) - 6 > EPSILON
    return zero != qmin or passes_six


def _bounds(gm: GraphModule, function: Node, pair: Node) -> tuple[int, int]:
    """The integers of 0 and of the function's largest value, rounded as the grid rounds."""
    _, scale_node, zero_node, _, qmax = cast(tuple[Any, ...], pair.args)
    zero = int(tensor_at(gm, str(zero_node.target)))
    if called(gm, function) not in RELU6S:
        return zero, qmax
    six = torch.div(torch.tensor(6.0), tensor_at(gm, str(scale_node.target)).cpu()).round()
    return zero, min(qmax, zero + int(six))
