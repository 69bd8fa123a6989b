"""Which channels of a net go together: a dependency analysis over its graphs.

Every index along the output axis and the input axis of a weight gets a label, and labels flow along the graph. Where
an operator needs two channels to stay or go together (an addition, a depthwise convolution, the heads of attention, a
reshape that has to stay one), their labels are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxcompress.flow import Flow
from fxcompress.graph import module_of
from fxcompress.labels import FIXED, Channels, Labelled, along_axis, fixed, varying
from fxcompress.operators import (
    BATCH_NORMS,
    argument,
    is_product,
    shape_of,
    weight_of,
)
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.sites import strip
from fxcompress.symbols import ASSUMPTIONS
from fxcompress.weight_flow import WeightFlow

NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Normalizations of each channel by itself, which may shift it away from zero."""


def find_channels(graphs: Iterable[GraphModule]) -> Channels:
    """Follow the channels of all graphs of one net."""
    found = Channels()
    views = list(graphs)
    for gm in views:
        _Walk(gm, found).run()
    for gm in views:
        _keep_rectangular(gm, found)
    return found


def _keep_rectangular(gm: GraphModule, found: Channels) -> None:
    """Where labels differ along several axes, the longest stays free and what lies along the others goes together."""
    for node in gm.graph.nodes:
        value = found.at.get(node)
        if not isinstance(value, Labelled) or len(varying(value.labels)) < 2:
            continue
        roots = found.unions.roots(value.labels)
        axes = varying(roots)
        if len(axes) > 1:
            found.unions.tie_along(value.labels, max(axes, key=lambda a: roots.shape[a]))


class _Walk:
    """One graph, node by node."""

    def __init__(self, gm: GraphModule, found: Channels) -> None:
        self.gm, self.found, self.unions = gm, found, found.unions
        self.flow = Flow(found.unions)
        self.weights_flow = WeightFlow(gm, found, self.flow)
        self.operands = {n: channel_operand(n) for n in gm.graph.nodes}
        self.weights = {strip(gm, w) for w in self.operands.values() if w is not None}

    def run(self) -> None:
        for node in self.gm.graph.nodes:
            self.found.at[node] = self._visit(node)
        for weight in self.weights:
            if weight.op == "get_attr" and not self._is_weight_only(weight):
                for axis, length in enumerate(shape_of(weight)[:2]):
                    self.unions.fix(self.found.labels(str(weight.target), axis, length))

    def _is_weight_only(self, node: Node) -> bool:
        """Whether products alone read `node`, through pruners and quantizers."""
        through = [u for u in node.users if isinstance(module_of(self.gm, u), Pruner | Quantizer)]
        others = [
            u for u in node.users if u not in through and self.operands[u] is not node and u.target is not getattr
        ]
        return not others and all(map(self._is_weight_only, through))

    def _visit(self, node: Node) -> Any:
        if node.op == "placeholder":
            return fixed(shape_of(node)) if "tensor_meta" in node.meta else None
        if node.op == "get_attr":
            return self._constant(node)
        if node.op == "output":
            for n in node.all_input_nodes:
                self._fix(self.found.at[n])
            return None
        if node.target in ASSUMPTIONS or getattr(node.target, "__name__", "") == "_assert":
            return None
        args = [self._value(a) for a in node.args]
        kwargs = {k: self._value(a) for k, a in node.kwargs.items()}
        special = self._special(node)
        if special is not None:
            return special(node)
        return self._flows(node, args, kwargs)

    def _value(self, arg: Any) -> Any:
        return map_arg(arg, lambda n: self.found.at[n])

    def _special(self, node: Node) -> Callable[[Node], Any] | None:
        if is_product(node):
            return self.weights_flow.product
        if node.target is F.embedding:
            return self.weights_flow.embedding
        module = module_of(self.gm, node)
        if isinstance(module, Pruner):
            return self._pruned
        if isinstance(module, Quantizer):
            return lambda n: self.found.at[_first(n)]
        return self._norm if isinstance(module, NORMS) else None

    def _flows(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        handler = self.flow.handler(self.gm, node)
        wanted = shape_of(node) if "tensor_meta" in node.meta else None
        try:
            value = handler(self.gm, node, *args, **kwargs) if handler else None
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            value = None  # labels cannot follow; what is not understood stays
        is_right = isinstance(value, Labelled) and tuple(value.shape) == wanted
        if is_right or (wanted is None and value is not None):
            return value
        return self.flow.unknown(self.gm, node, [self.found.at[n] for n in node.all_input_nodes])

    def _constant(self, node: Node) -> Any:
        value = _attribute(self.gm, str(node.target))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if node in self.weights:
            return fixed(tuple(value.shape))  # products have labels along its axes
        axis = max((a for a, n in enumerate(value.shape) if n > 1), default=None)
        dead = value.detach() == 0
        if axis is None:
            return Labelled(torch.tensor(FIXED).expand(value.shape), dead, False)
        labels = self.found.labels(str(node.target), axis, value.shape[axis])
        self.found.constants[str(node.target)] = axis
        shape = [-1 if a == axis else 1 for a in range(value.ndim)]
        return Labelled(labels.view(shape).expand(value.shape), dead, True)

    def _pruned(self, node: Node) -> Any:
        x, module = self.found.at[_first(node)], module_of(self.gm, node)
        if not isinstance(x, Labelled) or not isinstance(module, Pruner):
            return x
        if not module.is_enabled:
            return x
        try:
            dead = x.dead | ~module.ever_kept.cpu()
        except RuntimeError:  # a mask of another input size
            dead = x.dead
        return Labelled(x.labels, dead, x.vanishes)

    def _norm(self, node: Node) -> Any:
        x, module = self.found.at[_first(node)], module_of(self.gm, node)
        if not isinstance(x, Labelled) or x.labels.ndim < 2:
            return self.flow.unknown(self.gm, node, [x])
        labels = self.unions.along(x.labels, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, name, None) is not None:
                self.unions.tie(self.found.labels(f"{node.target}.{name}", 0, len(labels)), labels)
        self.found.norms[str(node.target)] = labels
        dead = torch.zeros(len(labels), dtype=torch.bool)
        if getattr(module, "weight", None) is not None:
            dead = ((module.weight == 0) & (module.bias == 0)).cpu()  # type: ignore[union-attr]
        return along_axis(labels, dead, 1, shape_of(node))

    def _fix(self, value: Any) -> None:
        if isinstance(value, Labelled):
            self.unions.fix(value.labels)
        elif isinstance(value, list | tuple):
            for one in value:
                self._fix(one)


def _first(node: Node) -> Node:
    return cast(Node, node.args[0])


def channel_operand(node: Node) -> Node | None:
    """The weight whose channels `node` reads and yields."""
    if node.op != "call_function":
        return None
    if is_product(node):
        found: Node = weight_of(node)
        return found
    table = argument(node, 1, "weight") if node.target is F.embedding else None
    return table if isinstance(table, Node) else None


def _attribute(gm: GraphModule, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(gm.get_submodule(owner), name)
