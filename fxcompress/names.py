"""Names in a file: of quantized tensors the path of the module that yields them, of outputs their place."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.graph import site
from fxcompress.integer import INTEGER
from fxcompress.operators import PRODUCTS
from fxcompress.qdq import QUANTIZE_DEQUANTIZE


def quantized_names(lowered: GraphModule) -> dict[Node, str]:
    """For each quantize-dequantize of a lowered graph, in graph order, the name of its integer tensor in the file."""
    names: dict[Node, str] = {}
    taken: dict[str, int] = {}
    for node in lowered.graph.nodes:
        if node.target is QUANTIZE_DEQUANTIZE:
            name = site(node)
            taken[name] = taken.get(name, -1) + 1
            names[node] = f"{name}.quantized" + (f"_{taken[name]}" if taken[name] else "")
    return names


def module_behind(quantizer: Node) -> str:
    """The path of the module that yields a quantized tensor: of the last one on the way from its inputs, functions
    passed over. Where there are only functions, the name of the last."""
    node = quantizer.all_input_nodes[0]
    while node.target is not QUANTIZE_DEQUANTIZE and node.op != "placeholder":
        if node.op == "call_module":
            return str(node.target)
        if node.target in PRODUCTS or node.target in INTEGER.values():
            return site(node)
        activations = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if len(activations) != 1:
            break
        node = activations[0]
    return site(quantizer)


def output_names(count: int) -> list[str]:
    """The names of so many outputs of a file."""
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def output_nodes(graph: Graph) -> list[Node]:
    """What yields the outputs, in order; containers that the graph itself makes are looked into."""
    return _nodes_in(graph.output_node().args)


def _nodes_in(value: Any) -> list[Node]:
    found: list[Node] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Node) and isinstance(leaf.target, type):
            found += _nodes_in((leaf.args, leaf.kwargs))
        elif isinstance(leaf, Node):
            found.append(leaf)
    return found
