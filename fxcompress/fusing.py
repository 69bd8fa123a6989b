"""The graph as it is run: biases are rounded as in the file; an activation's quantizer, and the function and the pruner
right before it, are one call, and those of small weights are all one."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from fxcompress.aliasing import is_private
from fxcompress.bias_rounding import round_biases
from fxcompress.graph import submodule, writes_in_place
from fxcompress.joint_calls import QuantizedActivation, QuantizedWeights, prune_and_quantize
from fxcompress.known_scale import UNBOUNDED, Bounds
from fxcompress.operators import RELU6S, RELUS, called
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

SMALL = 2**16
"""Elements of the largest weight that waits for others. Gradients of larger ones must not wait: where several processes
train, they are sent meanwhile."""

FUNCTIONS: dict[Bounds, Any] = {(0.0, UNBOUNDED[1]): F.relu, (0.0, 6.0): F.relu6}
"""What bounds its input so, and nothing else."""


@dataclass(frozen=True)
class Row:
    """A quantizer's node and those before it that nothing else reads; `start` is what they are computed from."""

    function: Node | None
    pruner: Node | None
    quantizer: Node

    @property
    def start(self) -> Any:
        """The input of the first."""
        return (self.function or self.pruner or self.quantizer).args[0]

    @property
    def nodes(self) -> list[Node]:
        """All there are, the last first."""
        return [node for node in (self.quantizer, self.pruner, self.function) if node is not None]


def fused(graph: Graph, net: nn.Module) -> Graph:
    """A copy of `graph` with rounded biases and one call for each row, and one for the rows of all small weights. It
    calls the modules that `net` has now."""
    copy = Graph(graph.owning_module)
    result = copy.graph_copy(graph, {})
    copy.output(result)
    round_biases(copy, net)
    rows = [_row(n, net) for n in copy.nodes if _calls(n, net, Quantizer) and len(n.all_input_nodes) == 1]
    small: list[Row] = []
    for row in rows:
        if _is_small_weight(row, net):
            small.append(row)
        elif len(row.nodes) > 1 or _module(row.quantizer, net).of_activation:
            _replace(copy, row, net)
    if small:
        _join(copy, small, net)
    return copy


def _row(quantizer: Node, net: Any) -> Row:
    pruner = _only_read(quantizer)
    if pruner is None or not _calls(pruner, net, Pruner):
        pruner = None
    function = _only_read(pruner or quantizer)
    if function is not None and (_within(function, net) is None or _is_seen(function, net)):
        function = None
    return Row(function, pruner, quantizer)


def _only_read(reader: Node) -> Node | None:
    """What `reader` is computed from, if nothing else is."""
    node = reader.args[0]
    return node if isinstance(node, Node) and len(node.users) == 1 else None


def _is_seen(function: Node, net: Any) -> bool:
    """Whether somebody sees that a function writes in place."""
    return writes_in_place(net, function) and not is_private(net, function.args[0])


def _within(node: Node, net: Any) -> Bounds | None:
    """The bounds of a function that bounds its only input."""
    what = called(net, node)
    if len(node.all_input_nodes) != 1 or what not in RELUS | RELU6S:
        return None
    return (0.0, 6.0) if what in RELU6S else (0.0, UNBOUNDED[1])


def _is_small_weight(row: Row, net: nn.Module) -> bool:
    start = row.start
    if not isinstance(start, Node) or start.op != "get_attr":
        return False
    owner, _, name = str(start.target).rpartition(".")
    weight = submodule(net, owner)._parameters.get(name)
    return weight is not None and weight.numel() <= SMALL


def _join(graph: Graph, rows: list[Row], net: Any) -> None:
    modules: Any = [(_module(row.pruner, net), _module(row.quantizer, net)) for row in rows]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        weights = tuple(graph.get_attr(str(row.start.target)) for row in rows)
        all_of_them = graph.call_function(QuantizedWeights(modules), weights)
    for i, row in enumerate(rows):
        with graph.inserting_before(row.quantizer):
            one = graph.call_function(operator.getitem, (all_of_them, i))
        weight = row.start
        _put(graph, row, one)
        if not weight.users:
            graph.erase_node(weight)


def _replace(graph: Graph, row: Row, net: Any) -> None:
    quantizer: Any = _module(row.quantizer, net)
    with graph.inserting_before(row.quantizer):
        if quantizer.of_activation:
            within = None if row.function is None else _within(row.function, net)
            function = _module(row.function, net) or (within and FUNCTIONS[within])
            call = QuantizedActivation(function, within or UNBOUNDED, _module(row.pruner, net), quantizer)
            one = graph.call_function(call, (row.start,))
        else:
            modules = [graph.get_attr(str(n.target)) for n in (row.pruner, row.quantizer) if n is not None]
            one = graph.call_function(prune_and_quantize, (row.start, *modules))
    _put(graph, row, one)


def _put(graph: Graph, row: Row, one: Node) -> None:
    row.quantizer.replace_all_uses_with(one)
    for node in row.nodes:
        graph.erase_node(node)


def _module(node: Node | None, net: nn.Module) -> Any:
    return submodule(net, str(node.target)) if node is not None and node.op == "call_module" else None


def _calls(node: Node, net: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(_module(node, net), kind)
