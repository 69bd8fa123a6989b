"""Print a graph as text: one node a line, `%name = target(args)`, a module as `path:Class`."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from fxcompress.graph import has_module, module_of


def render(gm: GraphModule) -> str:
    """The graph of `gm` as text, the same for equal graphs whatever torch's own printing does."""
    return "\n".join(line_of(gm, node) for node in gm.graph.nodes)


def line_of(gm: GraphModule, node: Node) -> str:
    """One node as text."""
    if node.op == "placeholder":
        default = f" = {_value(node.args[0])}" if node.args else ""
        return f"input %{node.name}{default}"
    if node.op == "output":
        return f"output {_value(node.args[0])}"
    if node.op == "get_attr":
        return f"%{node.name} = {node.target}"
    return f"%{node.name} = {_target(gm, node)}({_arguments(node)})"


def _target(gm: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        module = module_of(gm, node) if has_module(gm, str(node.target)) else None
        return f"{node.target}:{type(module).__name__ if module else 'missing'}"
    if node.op == "call_method":
        return f".{node.target}"
    return getattr(node.target, "__name__", str(node.target)).removesuffix(".default")


def _arguments(node: Node) -> str:
    positional = [_value(a) for a in node.args]
    return ", ".join(positional + [f"{k}={_value(v)}" for k, v in node.kwargs.items()])


def _value(value: Any) -> str:
    if type(value) is Node:
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_value(v) for v in value)
        name = type(value).__name__ if hasattr(value, "_fields") else ""
        return f"[{inner}]" if isinstance(value, list) else f"{name}({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_value(v)}" for k, v in value.items()) + "}"
    return repr(value)
