"""Lower a frozen graph to what ONNX's QDQ form wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import insert_function_after, module_of, replace, site
from fxcompress.operators import AVERAGE_POOLS, called, is_activation, is_dropout
from fxcompress.placement import grid_of, keeps_grid, pair_on
from fxcompress.qdq import GLOBAL_AVERAGE_POOL, QUANTIZE_DEQUANTIZE


@dataclass(frozen=True)
class LowerToQdq:
    """Put a QDQ pair on both sides of whatever runtimes compute on integers, and name pooling to one pixel as they do.

    What keeps values (max pooling, reshape, masks, ...) gets a pair with its input's scale behind it, which changes
    nothing.

    Before:  %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale,
                 %compression_x_quantizer_constants_zero_point, 0, 255)
             %flatten = flatten(%x_quantizer, 1)
    After:   %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale,
                 %compression_x_quantizer_constants_zero_point, 0, 255)
             %flatten = flatten(%x_quantizer, 1)
             %flatten_pair = quantize_dequantize(%flatten,
                 %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)

    Requires: weights, activations and biases are frozen, products still float.
    Ensures:  every output of a value-preserving operator on a grid has its pair.
    Leaves alone: operators with no quantized input.
    """

    name: ClassVar[str] = "lower-to-qdq"

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if products are integer already: ONNX wants float ones between QDQ pairs."""
        for node in gm.graph.nodes:
            if getattr(node.target, "__name__", "").startswith("integer_"):
                raise PassError(f"'{site(node)}' is an integer product; lower before `integer-products`")

    def rewrite(self, gm: GraphModule) -> bool:
        """Insert the pairs, then rename pooling."""
        todo = [(n, grid) for n in gm.graph.nodes if (grid := _missing_pair(gm, n))]
        pools = [n for n in gm.graph.nodes if _pools_to_one_pixel(gm, n)]
        for node, grid in todo:
            insert_function_after(gm, node, QUANTIZE_DEQUANTIZE, pair_on(gm, grid), f"{node.name}_pair")
        for node in pools:
            replace(node, GLOBAL_AVERAGE_POOL, (node.args[0],))
        return bool(todo or pools)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a pair is missing."""
        for node in gm.graph.nodes:
            if _missing_pair(gm, node):
                raise PassError(f"'{site(node)}' keeps values of a grid and has no QDQ pair behind it")


def _missing_pair(gm: GraphModule, node: Node) -> Node | None:
    if not keeps_grid(gm, node) or not is_activation(node) or is_dropout(gm, node):
        return None
    if any(user.target is QUANTIZE_DEQUANTIZE for user in node.users):
        return None
    return grid_of(gm, node)


def _pools_to_one_pixel(gm: GraphModule, node: Node) -> bool:
    if called(gm, node) not in AVERAGE_POOLS:
        return False
    size: Any = getattr(
        module_of(gm, node), "output_size", node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
    )
    is_adaptive = "Adaptive" in getattr(called(gm, node), "__name__", "").title().replace("_", "")
    return is_adaptive and size in (1, (1, 1), [1, 1])
