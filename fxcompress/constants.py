"""Values of nodes that depend on no input of the model: weights, and what is computed from weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxcompress.graph import tensor_at
from fxcompress.sharded import whole


@torch.no_grad()
def evaluate(gm: GraphModule, node: Node, known: Mapping[Node, Tensor] | None = None, *, split: bool = False) -> Any:
    """What `node`, which depends on no input, yields in evaluation mode; `known` are values to start from.

    Parameters that are split over ranks are put together, unless they are to stay `split`.
    """
    return _value(gm, node, dict(known or {}), split)


def expression(node: Node) -> str:
    """A text that two constant nodes share if they compute the same from the same weights."""
    if node.op == "get_attr":
        return str(node.target)
    return f"{node.op}:{node.target}{map_arg((node.args, node.kwargs), expression)}"


def _stored(gm: GraphModule, node: Node, split: bool) -> Tensor:
    tensor = tensor_at(gm, str(node.target)).detach()
    return tensor if split else whole(tensor)


def _value(gm: GraphModule, node: Node, values: dict[Node, Any], split: bool) -> Any:
    # No function inside that calls itself: values, as large as the weights, would stay until the garbage is collected.
    if node not in values:
        values[node] = _stored(gm, node, split) if node.op == "get_attr" else _compute(gm, node, values, split)
    return values[node]


def _compute(gm: GraphModule, node: Node, values: dict[Node, Any], split: bool) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _value(gm, n, values, split))
    if node.op == "call_module":
        return _call(gm.get_submodule(str(node.target)), args, kwargs)
    function: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
    return function(*(args[1:] if node.op == "call_method" else args), **kwargs)


def _call(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Call a module in evaluation mode, so that it keeps its state, and leave its modes as they were."""
    modes = {m: m.training for m in module.modules()}
    try:
        for m in modes:
            m.training = False
        return module(*args, **kwargs)
    finally:
        for m, mode in modes.items():
            m.training = mode
