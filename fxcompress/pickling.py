"""Graphs as records that pickle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node


class _Ref(str):
    """A node's name in place of the node, in a pickled graph."""

    __slots__ = ()


class _Function(tuple[str, str]):
    """A function's module and name in place of the function (some of torch's cannot be pickled themselves)."""

    __slots__ = ()


def to_records(graph: Graph) -> list[Any]:
    """A graph as plain data."""
    return [
        (n.op, n.name, _pack_target(n.target), *torch.fx.node.map_arg((n.args, n.kwargs), lambda a: _Ref(a.name)),
         n.type, {k: n.meta[k] for k in ("site", "owner", "tensor_meta", "device", "constant") if k in n.meta})
        for n in graph.nodes
    ]  # fmt: skip


def from_records(records: list[Any]) -> Graph:
    """The graph that `to_records` took apart."""
    graph, nodes = Graph(), dict[str, Node]()
    for op, name, target, args, kwargs, type_expr, meta in records:
        args, kwargs = _map_refs((args, kwargs), nodes)
        node = graph.create_node(op, _unpack_target(target), args, kwargs, name, type_expr)
        node.meta.update(meta)
        nodes[name] = node
    return graph


def _map_refs(value: Any, nodes: Mapping[str, Node]) -> Any:
    if isinstance(value, slice):
        return slice(*(_map_refs(v, nodes) for v in (value.start, value.stop, value.step)))
    if isinstance(value, (tuple, list)):
        items = [_map_refs(v, nodes) for v in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {k: _map_refs(v, nodes) for k, v in value.items()}
    return nodes[value] if isinstance(value, _Ref) else value


def _pack_target(target: Any) -> Any:
    if isinstance(target, str):
        return target
    home, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    return _Function((home, name)) if home and getattr(sys.modules.get(home), name, None) is target else target


def _unpack_target(target: Any) -> Any:
    if not isinstance(target, _Function):
        return target
    __import__(target[0])
    return getattr(sys.modules[target[0]], target[1])
