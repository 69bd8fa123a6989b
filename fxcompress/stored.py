"""Stored tensors: floats while PyTorch's exporter works, integers behind DequantizeLinear in the file.

That exporter's time goes with the number of operators, and half of a lowered graph's dequantize what is stored.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import onnx_ir as ir
from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.graph import tensor_at
from fxcompress.qdq import DEQUANTIZE

_HOME = "fxcompress_stored"
"""The module of a graph that holds its stored tensors as floats."""


def as_floats(lowered: GraphModule) -> tuple[GraphModule, dict[str, Node]]:
    """The graph with floats in place of what it dequantizes, and the `dequantize` node behind each, by its name.

    Modules are shared with `lowered`, which stays as it was.
    """
    twin = GraphModule(lowered, copy.deepcopy(lowered.graph)).eval()
    twin.add_module(_HOME, nn.Module())
    found: dict[str, Node] = {}
    for node, ours in zip(twin.graph.nodes, list(lowered.graph.nodes), strict=True):
        if node.target is not DEQUANTIZE:
            continue
        name = f"_{len(found)}"
        found[f"{_HOME}.{name}"] = ours
        twin.get_submodule(_HOME).register_buffer(name, DEQUANTIZE(*(_value(lowered, a) for a in ours.args)))
        node.op, node.target, node.args, node.kwargs = "get_attr", f"{_HOME}.{name}", (), {}
    twin.graph.eliminate_dead_code(lambda n: n.op != "get_attr")
    twin.recompile()
    return twin, found


def as_integers(model: ir.Model, lowered: GraphModule, floats: dict[str, Node]) -> None:
    """Put DequantizeLinear with its integers, scale and zero point in the place of each of `floats` that is read."""
    for node in list(model.graph):
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.name in floats:
                model.graph.insert_before(node, _dequantize(model, lowered, value, floats[value.name]))
    for value in list(model.graph.outputs):
        if value.is_initializer() and value.name in floats:
            model.graph.append(_dequantize(model, lowered, value, floats[value.name]))
    for name in floats:
        model.graph.initializers.pop(name, None)


def _dequantize(model: ir.Model, lowered: GraphModule, value: ir.Value, node: Node) -> ir.Node:
    """The ONNX node of a `dequantize` node; it takes every use of `value`."""
    axis, _, block = (*cast(tuple[int, ...], node.args[3:]), 0, 0)[:3]
    attributes = {"axis": axis} | ({"block_size": block} if block else {})
    inputs = [None if n is None else _initializer(model, lowered, str(n.target)) for n in node.args[:3]]  # type: ignore[union-attr]
    made = ir.node("DequantizeLinear", inputs[: 3 if inputs[2] is not None else 2], attributes)
    made.outputs[0].shape, made.outputs[0].type = value.shape, value.type
    value.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    return made


def _initializer(model: ir.Model, lowered: GraphModule, name: str) -> ir.Value:
    if name not in model.graph.initializers:
        stored = tensor_at(lowered, name).detach()
        tensor = ir.tensor(stored.numpy(), name=name)
        value = ir.Value(name=name, shape=ir.Shape(stored.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


def _value(lowered: GraphModule, argument: Any) -> Any:
    return tensor_at(lowered, str(argument.target)).detach() if isinstance(argument, Node) else argument
