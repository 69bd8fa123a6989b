"""Freeze: training state becomes constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.gates import GATE, GATE_SCALE
from fxcompress.graph import (
    drop_dead_code,
    insert_constants,
    insert_function_before,
    module_of,
    replace,
    site,
    tensor_at,
)
from fxcompress.grid import broadcast, quantize
from fxcompress.pruner import Pruner
from fxcompress.qdq import DEQUANTIZE, QUANTIZE_DEQUANTIZE
from fxcompress.quantizer import Quantizer
from fxcompress.sites import strip


@dataclass(frozen=True)
class Freeze:
    """Turn weights into stored integers, masks and scales into constants.

    A mask on an activation moves behind its quantizer: zero lies on the grid, so the result is the same, and runtimes
    multiply integers.

    Before:  %x_quantizer = compression.x_quantizer:Quantizer(%x)
             %fc_weight = fc.weight
             %fc_weight_quantizer = compression.fc.weight_quantizer:Quantizer(%fc_weight)
    After:   %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale,
                 %compression_x_quantizer_constants_zero_point, 0, 255)
             %fc_weight_integers = fc.weight_integers
             %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)

    Requires: evaluation mode; every pruner and quantizer is enabled.
    Ensures:  no pruner and no quantizer is left.
    """

    name: ClassVar[str] = "freeze"

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError in training mode."""
        if gm.training:
            raise PassError("the net is in training mode; freeze a copy in evaluation mode")

    def rewrite(self, gm: GraphModule) -> bool:
        """Weights first, then activations: masks behind quantizers, and both as functions of constants."""
        todo = [n for n in gm.graph.nodes if isinstance(module_of(gm, n), (Pruner, Quantizer))]
        of_weight = [n for n in todo if strip(gm, n).op == "get_attr"]
        for node in of_weight:
            _freeze_weight(gm, node)
        rest = [n for n in todo if n not in set(of_weight)]
        for node in rest:
            if isinstance(module_of(gm, node), Pruner):
                _swap_with_quantizer(gm, node)
        for node in rest:
            _freeze_activation(gm, node)
        return drop_dead_code(gm) or bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if training state is left."""
        for node in gm.graph.nodes:
            if isinstance(module_of(gm, node), (Pruner, Quantizer)):
                raise PassError(f"'{node.target}' is still a module")


def _freeze_weight(gm: GraphModule, node: Node) -> None:
    module: Any = module_of(gm, node)
    source: Node = node.args[0]  # type: ignore[assignment]
    owner, _, name = site(source).rpartition(".")
    if source.target is DEQUANTIZE:
        _mask_integers(gm, node, source, module.mask)
        return
    value = tensor_at(gm, str(source.target)).detach()
    if isinstance(module, Pruner):
        [masked] = insert_constants(gm, node, owner, {f"{name}_masked": value * module.mask})
        masked.meta["site"] = site(source)
        node.replace_all_uses_with(masked)
        gm.graph.erase_node(node)
        return
    plan, (scale, zero_point) = module.plan, [t.detach() for t in module.chosen()]
    along = [broadcast(t, module.axis, value.ndim, plan.block) for t in (scale, zero_point)]
    dtype = plan.grid.dtype
    constants = {
        f"{name}_integers": quantize(value.float(), along[0], along[1], plan.grid).to(dtype),
        f"{name}_scale": scale.clone(),
        f"{name}_zero_point": zero_point.to(dtype),
    }
    nodes = insert_constants(gm, node, owner, constants)
    bits = () if plan.grid.bits in (8, 16) and not plan.block else (plan.grid.bits,)
    axis = value.ndim - 1 if plan.block else module.axis or 0
    replace(node, DEQUANTIZE, (*nodes, axis, *bits, *((plan.block,) if plan.block else ())))


def _mask_integers(gm: GraphModule, pruner: Node, dequantized: Node, mask: Tensor) -> None:
    """p behind q: masked integers are the zero point."""
    integers, zero = (tensor_at(gm, str(cast(Node, dequantized.args[i]).target)) for i in (0, 2))
    zeros = broadcast(zero, cast(int, dequantized.args[3]) if zero.ndim else None, integers.ndim)
    owner, _, name = site(dequantized).rpartition(".")
    [masked] = insert_constants(gm, dequantized, owner, {f"{name}_masked": torch.where(mask, integers, zeros)})
    dequantized.args = (masked, *dequantized.args[1:])
    pruner.replace_all_uses_with(dequantized)
    gm.graph.erase_node(pruner)


def _swap_with_quantizer(gm: GraphModule, pruner: Node) -> None:
    """p then q becomes q then p."""
    quantizer = next(iter(pruner.users), None)
    if len(pruner.users) != 1 or not isinstance(module_of(gm, quantizer), Quantizer):
        return
    assert quantizer is not None
    quantizer.replace_input_with(pruner, pruner.args[0])  # type: ignore[arg-type]
    quantizer.replace_all_uses_with(pruner)
    pruner.args = (quantizer,)
    quantizer.append(pruner)


def _freeze_activation(gm: GraphModule, node: Node) -> None:
    module: Any = module_of(gm, node)
    path = f"{node.target}_constants"
    if len(node.args) > 1:
        node.args = (_gate(gm, node, path),)
    if isinstance(module, Pruner):
        [mask] = insert_constants(gm, node, path, {"mask": module.mask.to(torch.uint8)})
        ones = {"scale": torch.tensor(1.0), "zero_point": torch.tensor(0, dtype=torch.uint8)}
        stored = (mask, *insert_constants(gm, node, path, ones), 0)
        kept = insert_function_before(gm, node, DEQUANTIZE, stored, f"{node.name}_mask")
        replace(node, torch.mul, (node.args[0], kept))
        return
    chosen, zero = [t.detach() for t in module.chosen()]
    constants = {"scale": chosen.clone(), "zero_point": zero.to(module.grid.dtype)}
    scale, zero_point = insert_constants(gm, node, path, constants)
    replace(node, QUANTIZE_DEQUANTIZE, (node.args[0], scale, zero_point, module.grid.qmin, module.grid.qmax))


def _gate(gm: GraphModule, quantizer: Node, path: str) -> Node:
    """x q(sigmoid(x)) in front of a quantizer that is given x."""
    function, ungated = cast(tuple[Node, Node], quantizer.args)
    constants = {"gate_scale": torch.tensor(GATE_SCALE), "gate_zero_point": torch.tensor(0, dtype=torch.uint8)}
    stored = insert_constants(gm, quantizer, path, constants)
    sigmoid = insert_function_before(gm, quantizer, torch.sigmoid, (ungated,), f"{function.name}_sigmoid")
    on_grid = (sigmoid, *stored, GATE.qmin, GATE.qmax)
    gate = insert_function_before(gm, quantizer, QUANTIZE_DEQUANTIZE, on_grid, f"{function.name}_gate")
    product = insert_function_before(gm, quantizer, torch.mul, (ungated, gate), f"{function.name}_gated")
    for new in (sigmoid, gate, product):
        new.meta.update(function.meta)
    gate.meta["site"] = f"{site(function)}.gate"
    return product
