"""Which grid a tensor lies on."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fxcompress.graph import module_of, submodule, tensor_at, writes_in_place
from fxcompress.grid import broadcast
from fxcompress.operators import (
    PRODUCTS,
    TRANSPOSED,
    VIEWS,
    ZEROS,
    argument,
    called,
    channel_axis,
    is_batch_norm,
    is_value_preserving,
    shape_of,
    weight_of,
)
from fxcompress.pruner import Pruner
from fxcompress.qdq import DEQUANTIZE, QUANTIZE_DEQUANTIZE, is_blockwise
from fxcompress.quantizer import Quantizer

LARGEST = 2**31 - 1
"""What int32 holds, in which runtimes add."""


def grid_of(gm: GraphModule, node: Any) -> Node | None:
    """The `quantize_dequantize` whose grid `node`'s values lie on, seen through what keeps values.

    None if there is none, or if somebody writes to the tensor in place.

    A concatenation lies on a grid if all its inputs lie on the same; some may reach over a part of it only, and the one
    that reaches furthest is found.
    """
    grids: dict[Any, list[Node]] = {}
    pending, seen = [node], set[Any]()
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if is_written(gm, node):
            return None
        if node.target is QUANTIZE_DEQUANTIZE:
            grids.setdefault((node.args[1].target, node.args[2].target), []).append(node)  # type: ignore[union-attr]
        elif node.target in ZEROS:
            continue
        elif keeps_grid(gm, node):
            pending += _tensors(node)
        else:
            return None
    if len(grids) != 1:
        return None
    [same] = grids.values()
    return max(same, key=_reach)


def quantizers_before(gm: GraphModule, graph: Graph) -> dict[Node, str]:
    """As `grid_of`, of a graph in training: the quantizer's path for each node that lies on its grid."""
    found: dict[Node, set[str] | None] = {}
    for node in graph.nodes:
        if is_written(gm, node):
            found[node] = None
        elif isinstance(module_of(gm, node), Quantizer):
            found[node] = {str(node.target)}
        elif node.target in ZEROS:
            found[node] = set()
        elif keeps_grid(gm, node):
            before = [found.get(n) for n in _tensors(node)]
            joined = None if None in before else set[str]().union(*before)  # type: ignore[arg-type]
            found[node] = joined if joined is not None and len(joined) < 2 else None
    return {node: next(iter(one)) for node, one in found.items() if one}


def pair_on(gm: GraphModule, grid: Node) -> tuple[Any, ...]:
    """The arguments of a pair behind values of `grid`: they need no clip, whatever its bounds are."""
    _, scale, zero_point, *_ = cast(tuple[Any, ...], grid.args)
    reach = torch.iinfo(tensor_at(gm, str(zero_point.target)).dtype)
    return (scale, zero_point, reach.min, reach.max)


def _reach(grid: Node) -> int:
    *_, qmin, qmax = cast(tuple[Any, ...], grid.args)
    return int(qmax) - int(qmin)


def largest_input(gm: GraphModule, product: Node) -> int:
    """The largest magnitude of an integer, less the zero point, that a product's quantized input can have."""
    grid: Any = grid_of(gm, product.args[0])
    zero = int(tensor_at(gm, str(grid.args[2].target)))
    return max(abs(int(grid.args[3]) - zero), abs(int(grid.args[4]) - zero))


def is_written(gm: GraphModule, node: Node) -> bool:
    """Whether somebody writes in place to the tensor that `node` yields, itself or through a view of it."""
    return any(
        (writes_in_place(gm, user) and user.args[:1] == (node,)) or (called(gm, user) in VIEWS and is_written(gm, user))
        for user in node.users
    )


def keeps_grid(gm: GraphModule, node: Node) -> bool:
    """Whether `node` yields values of its input: value-preserving, a mask's multiplication, or a pruner."""
    return is_value_preserving(gm, node) or is_masking(node) or isinstance(module_of(gm, node), Pruner)


def is_masking(node: Node) -> bool:
    """Whether `node` multiplies an activation by a stored mask."""
    return node.target is torch.mul and isinstance(node.args[1], Node) and node.args[1].target is DEQUANTIZE


def _tensors(node: Node) -> list[Any]:
    if is_masking(node):
        return [node.args[0]]
    first = node.args[0] if node.args else None
    return list(first) if isinstance(first, (list, tuple)) else [first]


def adds_in_int32(gm: GraphModule, product: Node) -> bool:
    """Whether a product of an integer weight, one scale a channel, and an input on a grid has sums that int32 holds."""
    return not is_blockwise(weight_of(product)) and room_for_bias(gm, product) >= 0


def room_for_bias(gm: GraphModule, product: Node) -> float:
    """How large an integer bias may be for no sum of the product to leave int32, in which runtimes accumulate; negative
    where the products alone leave it, as those of 16-bit integers do."""
    integers, zeros = stored_integers(gm, product)
    sums = (integers - zeros).movedim(channel_axis(product), 0).flatten(1).double().abs().sum(1)
    return float(LARGEST - sums.max() * largest_input(gm, product)) if sums.numel() else float(LARGEST)


def stored_integers(gm: GraphModule, product: Node) -> tuple[Tensor, Tensor]:
    """A weight's integers and zero points, as int32 that broadcast."""
    stored, zero = (tensor_at(gm, str(weight_of(product).args[i].target)).int() for i in (0, 2))
    return stored, broadcast(zero, channel_axis(product) if zero.ndim else None, stored.ndim)


def folded_product(gm: GraphModule, norm: Node) -> Node | None:
    """The product that a batch norm folds into, whose channels are its own; None if there is none."""
    if not is_batch_norm(gm, norm) or not norm.args or submodule(gm, str(norm.target)).running_var is None:
        return None
    product: Any = norm.args[0]
    if product.target not in PRODUCTS or len(product.users) != 1:
        return None
    if product.target is F.linear and len(shape_of(product)) > 2:
        return None
    return product if product.target not in TRANSPOSED or argument(product, 6, "groups", 1) == 1 else None
