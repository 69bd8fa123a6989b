"""The graph as it is run: biases are rounded as in the file; an activation's quantizer, and the function and the pruner
right before it, are one call, and so is a product with the pruner and the quantizer of its weight and of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from fxcompress.aliasing import is_private
from fxcompress.bias_rounding import normed, round_biases
from fxcompress.graph import submodule, writes_in_place
from fxcompress.joint_calls import QuantizedActivation, Roundings, prune_and_quantize
from fxcompress.operators import ADDS, BATCH_NORMS, PRODUCTS, RELU6S, RELUS, called
from fxcompress.pruner import Pruner
from fxcompress.quantized_product import QuantizedProduct, Scratch, is_product_of
from fxcompress.quantizer import Quantizer
from fxcompress.rounding import UNBOUNDED, Bounds

FREE: frozenset[Any] = PRODUCTS | ADDS | {
    *BATCH_NORMS, nn.LayerNorm, F.layer_norm, nn.GELU, F.gelu, nn.SiLU, F.silu,
}  # fmt: skip
"""What yields memory of its own, which it does not read on the way back."""

RESHAPES = {
    "unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "resize_", "resize_as_", "set_",
    "as_strided_",
}  # fmt: skip
"""What gives a tensor that is there another shape."""

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
    """A copy of `graph` with rounded biases and one call for each row. It calls the modules that `net` has now."""
    copy = Graph(graph.owning_module)
    result = copy.graph_copy(graph, {})
    copy.output(result)
    round_biases(copy, net)
    rows = [_row(n, net) for n in copy.nodes if _calls(n, net, Quantizer) and len(n.all_input_nodes) == 1]
    of_activations = [row for row in rows if _module(row.quantizer, net).of_activation]
    if not any(map(_reshapes, copy.nodes)):  # an alias of what is asked may be meant
        for row in of_activations:
            _ask_the_start(row)
    for row in of_activations:
        _replace(copy, row, net)
    scratch = Scratch()
    for row in rows:
        if row in of_activations:
            continue
        if (product := _only_product(row)) is not None:
            _multiply(product, row, net, scratch)
        elif row.pruner is not None:
            _replace_weight(copy, row)
    _look_once(copy)
    return copy


def _look_once(graph: Graph) -> None:
    """Let all calls be given how each rounds."""
    roundings = Roundings()
    calls = [node for node in graph.nodes if isinstance(node.target, (QuantizedActivation, QuantizedProduct))]
    if not calls:
        return
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        all_of_them = graph.call_function(roundings)
    for node in calls:
        node.args = (all_of_them, *node.args)
        for call in (node.target, getattr(node.target, "input", None)):
            if call is not None:
                roundings.add(call)


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


def _only_product(row: Row) -> Node | None:
    """The product that is all that reads a row."""
    [product, *others] = row.quantizer.users
    return product if not others and is_product_of(product, row.quantizer) else None


def _multiply(product: Node, row: Row, net: Any, scratch: Scratch) -> None:
    modules: Any = _module(row.pruner, net), _module(row.quantizer, net)
    call = QuantizedProduct(product, modules, scratch)
    product.replace_input_with(row.quantizer, row.start)
    product.target = call
    for node in row.nodes:
        product.graph.erase_node(node)
    before: Any = product.args[0]
    if isinstance(before.target, QuantizedActivation) and before.target.overwrites and len(before.users) == 1:
        call.input = before.target
        product.replace_input_with(before, before.args[0])
        product.graph.erase_node(before)


def _replace(graph: Graph, row: Row, net: Any) -> None:
    within = None if row.function is None else _within(row.function, net)
    function = _module(row.function, net) or (within and FUNCTIONS[within])
    modules = _module(row.pruner, net), _module(row.quantizer, net)
    overwrites, before = _is_free(row.start, net)
    call = QuantizedActivation(function, within or UNBOUNDED, *modules, overwrites, before)
    with graph.inserting_before(row.quantizer):
        one = graph.call_function(call, (row.start,))
    _put(graph, row, one)


def _ask_the_start(row: Row) -> None:
    """Let who asks for a row's size ask for that of its start, and so read no values."""
    for reader in filter(_asks_for_size, [*row.quantizer.users]):
        reader.replace_input_with(row.quantizer, row.start)


def _reshapes(node: Node) -> bool:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return (node.op != "call_module" and name in RESHAPES) or "out" in node.kwargs


def _asks_for_size(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    return node.target is getattr and node.args[1] in ("shape", "ndim")


def _is_free(node: Any, net: Any) -> tuple[bool, nn.Module | None]:
    """Whether only one reads what `node` yields, but for its size, and that is in memory of its own and not kept for
    the way back; and the module that yields it, if one does."""
    if not isinstance(node, Node) or _is_seen(node, net):
        return False, None
    if len([reader for reader in node.users if not _asks_for_size(reader)]) != 1:
        return False, None
    module = submodule(net, str(node.args[1].target)) if node.target is normed else _module(node, net)  # type: ignore[union-attr]
    what = node.target if module is None else type(module)
    return what in FREE, module


def _replace_weight(graph: Graph, row: Row) -> None:
    with graph.inserting_before(row.quantizer):
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
