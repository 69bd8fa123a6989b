"""Pruners and the quantizers right behind them as one: the graph as it is run, and what stands in it for both."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Graph, Node

from fxcompress.graph import submodule
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer


def prune_and_quantize(x: Tensor, pruner: Pruner, quantizer: Quantizer) -> Tensor:
    """`quantizer(pruner(x))`, in passes over memory that do both where nothing looks between the two."""
    if pruner.is_enabled and quantizer.is_enabled and not _looks(pruner) and not _looks(quantizer):
        return quantizer.on_grid(x, pruner.fitting(x), pruner.is_dense and not pruner.is_frozen)
    return quantizer(pruner(x))  # type: ignore[no-any-return]


def _looks(module: Pruner | Quantizer) -> bool:
    if module.training and (module.observing or (isinstance(module, Quantizer) and module.plan.recalibrates)):
        return True
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def fused(graph: Graph, net: nn.Module) -> Graph:
    """`graph` with one call for each quantizer and the pruner before it, if nothing else reads the pruner; a copy."""
    copy = Graph(graph.owning_module)
    result = copy.graph_copy(graph, {})
    copy.output(result)
    for node in [node for node in copy.nodes if _quantizes_pruned(node, net)]:
        pruner: Node = node.args[0]
        with copy.inserting_before(node):
            modules = [copy.get_attr(str(n.target)) for n in (pruner, node)]
            both = copy.call_function(prune_and_quantize, (pruner.args[0], *modules))
        node.replace_all_uses_with(both)
        copy.erase_node(node)
        copy.erase_node(pruner)
    return copy


def _quantizes_pruned(node: Node, net: nn.Module) -> bool:
    if not _calls(node, net, Quantizer) or len(node.all_input_nodes) != 1:
        return False
    [pruner] = node.all_input_nodes
    return _calls(pruner, net, Pruner) and len(pruner.users) == 1


def _calls(node: Node, net: nn.Module, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(submodule(net, str(node.target)), kind)
