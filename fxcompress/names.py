"""Names in a file: of quantized tensors the path of the module that yields them, of outputs their place."""

from __future__ import annotations

from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.graph import site
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


def output_names(lowered: GraphModule) -> list[str]:
    """The names of a graph's outputs in the file."""
    count = len(pytree.tree_leaves(lowered.graph.output_node().args[0]))
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
