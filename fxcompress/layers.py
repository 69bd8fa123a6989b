"""A frozen graph run layer by layer: each quantized tensor is seen, and may be replaced by what a runtime computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from fxcompress.arithmetic import Arithmetic, Product
from fxcompress.grid import broadcast
from fxcompress.integer import INTEGER, scaled
from fxcompress.operators import PRODUCTS
from fxcompress.placement import grid_of
from fxcompress.qdq import QUANTIZE_DEQUANTIZE


@dataclass(frozen=True)
class Seen:
    """A quantized tensor as the graph computes it: `ratio` (float32, x / scale), the zero point, and `integers` (int32,
    rounded and clipped)."""

    ratio: Tensor
    zero_point: Tensor
    integers: Tensor


class Layers(Interpreter):
    """Runs `reference`, calls `see` at each quantizer, and goes on with `replacements` where there are any.

    With an `arithmetic`, products add and quantizers clip as it says, on its constants.
    """

    def __init__(
        self,
        reference: GraphModule,
        see: Callable[[Node, Seen], None],
        replacements: Mapping[Node, np.ndarray] | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        super().__init__(reference)
        self.reference = reference
        self.see, self.replacements, self.arithmetic = see, replacements or {}, arithmetic

    def over(self, feeds: Mapping[str, Any]) -> Any:
        """The graph's output for inputs by name."""
        with torch.no_grad():
            return self.run(*positional(self.graph, feeds))

    def run_node(self, n: Node) -> Any:
        """Run a node: quantizers and products here, others as they are."""
        if n.target is QUANTIZE_DEQUANTIZE:
            return self._quantize(n)
        if n.op == "get_attr" and self.arithmetic is not None and n.target in self.arithmetic.constants:
            return self.arithmetic.constants[str(n.target)]
        if self.arithmetic is not None and n.target in _FLOAT:
            return self._product(n, self.arithmetic)
        return super().run_node(n)

    def _quantize(self, n: Node) -> Tensor:
        (x, scale, zero_point, qmin, qmax), _ = self.fetch_args_kwargs_from_env(n)
        if self.arithmetic is not None and not self.arithmetic.clips:
            stored = torch.iinfo(zero_point.dtype)
            qmin, qmax = stored.min, stored.max
        zero = zero_point.to(torch.int32)
        ratio = torch.div(x, scale)
        ours = torch.round(ratio).add_(zero).clamp_(qmin, qmax).to(torch.int32)
        self.see(n, Seen(ratio, zero, ours))
        theirs = self.replacements.get(n)
        integers = ours if theirs is None else torch.from_numpy(theirs.astype(np.int32))
        values: Tensor = (integers - zero).float() * scale
        return values

    def _product(self, n: Node, arithmetic: Arithmetic) -> Tensor:
        (x, weight, bias, scales, _, *rest), _ = self.fetch_args_kwargs_from_env(n)
        grid: Any = grid_of(self.reference, n.args[0])
        zero_point = arithmetic.constants.get(grid.args[2].target, self.fetch_attr(grid.args[2].target))
        on_grid = bias is not None and not bias.is_floating_point()
        product = Product(
            _FLOAT[n.target],  # type: ignore[index] # a function, see `run_node`
            torch.div(x, scales[0]).round_().double(),
            zero_point,
            weight,
            bias.double() if on_grid else None,
            tuple(rest),
        )
        sums = arithmetic.sums(product)
        axis = product.channel_axis(sums)
        values = scaled(sums, scales, axis)
        return values if bias is None or on_grid else values + broadcast(bias, axis, values.ndim)


_FLOAT = {INTEGER[function]: function for function in PRODUCTS}
"""The float function of each integer product of an activation and a weight."""


def positional(graph: Graph, feeds: Mapping[str, Any]) -> list[Any]:
    """Copies of inputs by name in the order of a graph's placeholders, with defaults where there are none."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    values = [feeds.get(str(n.target), n.args[0] if n.args else None) for n in placeholders]
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, values)  # type: ignore[no-any-return] # may be written
