"""Rearrange weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.constants import evaluate
from fxcompress.errors import PassError
from fxcompress.graph import drop_dead_code, insert_constants, insert_function_before, site, tensor_at
from fxcompress.grid import broadcast
from fxcompress.operators import is_constant, is_move, weights_of
from fxcompress.qdq import DEQUANTIZE, is_blockwise


@dataclass(frozen=True)
class RearrangeWeights:
    """Transpose, split and join stored integers, not what is dequantized from them, so that products find integers.

    Before:  %weight_quantizer = dequantize(%weight_integers, %weight_scale, %weight_zero_point, 1)
             %matmul_transposed = transpose(%weight_quantizer, 0, 1)
             %matmul = linear(%x, %matmul_transposed)
    After:   %matmul_weight = dequantize(%matmul_weight_integers, %matmul_weight_scale, %matmul_weight_zero_point, 0)
             %matmul = linear(%x, %matmul_weight)

    Requires: weights are frozen.
    Ensures:  no product reads a symmetric integer weight through operators that only move elements.
    Leaves alone: what would need more than one scale a channel; weights with zero points.
    """

    name: ClassVar[str] = "rearrange-weights"

    def requires(self, gm: GraphModule) -> None:
        """Nothing: what is not frozen is left alone."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Rearrange each weight of each product."""
        todo = [
            (n, w, found) for n in gm.graph.nodes for w, axis in weights_of(n) if (found := _rearranged(gm, w, axis))
        ]
        for user, weight, (integers, scale, how) in todo:
            constants = {
                "weight_integers": integers,
                "weight_scale": scale,
                "weight_zero_point": scale.new_zeros(scale.shape, dtype=integers.dtype),
            }
            nodes = insert_constants(gm, user, site(user), constants)
            new = insert_function_before(gm, user, DEQUANTIZE, (*nodes, *how), f"{user.name}_weight")
            new.meta.update(weight.meta)
            user.replace_input_with(weight, new)
        return drop_dead_code(gm) or bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for node in gm.graph.nodes:
            for weight, axis in weights_of(node):
                if _rearranged(gm, weight, axis):
                    raise PassError(f"'{site(node)}' reads '{weight.name}', which could be integers")


def _rearranged(gm: GraphModule, weight: Node, axis: int) -> tuple[Tensor, Tensor, tuple[Any, ...]] | None:
    """Integers, scale, and axis and width of a weight that is made of dequantized ones by moving elements; else None."""
    if not is_move(weight):
        return None
    origins: list[Node] | None = _origins(weight)
    if origins is None or any(map(is_blockwise, origins)) or len({n.args[4:] for n in origins}) > 1:
        return None
    stored = {n: [tensor_at(gm, str(a.target)) for a in n.args[:3]] for n in origins}  # type: ignore[union-attr]
    if any(bool(zero_point.any()) for _, _, zero_point in stored.values()):
        return None
    integers = evaluate(gm, weight, {n: integers for n, (integers, _, _) in stored.items()})
    scales = evaluate(gm, weight, {n: _spread(n, integers, scale) for n, (integers, scale, _) in stored.items()})
    along = scales.movedim(axis, 0).flatten(1)
    if not bool((along == along[:, :1]).all()):
        return None
    return integers.contiguous().clone(), along[:, 0].contiguous().clone(), (axis, *origins[0].args[4:])


def _spread(origin: Node, integers: Tensor, scale: Tensor) -> Tensor:
    axis: Any = origin.args[3]
    return broadcast(scale, axis if scale.ndim else None, integers.ndim).expand_as(integers)


def _origins(weight: Node) -> list[Node] | None:
    """The dequantized weights that a weight is made of; None if it is made of anything else."""
    found, pending = [], [weight]
    while pending:
        node = pending.pop()
        if node.target is DEQUANTIZE:
            found.append(node)
        elif is_move(node) and node.all_input_nodes and all(map(is_constant, node.all_input_nodes)):
            pending += node.all_input_nodes
        else:
            return None
    return found
