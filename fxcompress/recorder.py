"""Record the nodes of one graph: their names, their values for the example inputs, and what arguments become."""

from __future__ import annotations

import operator
import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from fxcompress.islands import WEIGHT_OWNING
from fxcompress.operators import is_constant
from fxcompress.symbols import NUMERIC, Symbol, Untraceable, is_symbol, map_symbols, symbols_in
from fxcompress.values import Values, note


class Recorder(Tracer):
    """Makes the nodes of a graph over a tree of modules, each named by the module path that made it."""

    def __init__(self, root: nn.Module, values: Values) -> None:
        super().__init__(autowrap_functions=(), param_shapes_constant=False)
        self.tree, self.values = root, values
        self.paths = {id(t): name for name, t in (*root.named_parameters(), *root.named_buffers())}
        self.attributes: dict[str, Symbol] = {}
        self.assumed: dict[tuple[Any, Node], None] = {}
        self.constants: dict[str, Tensor] = {}
        self.grad_enabled = True
        self.is_done = False
        self.region = ""  # the path of the module whose forward is recorded
        self._counts: dict[str, int] = {}
        self._bases: dict[Node, str] = {}

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Record a node, and find what it yields."""
        if target == "split" and args[0].node.meta.get("constant"):
            args = (args[0], map_symbols(args[1], int), *args[2:])  # where a weight is cut does not follow the input
        computed = kind.startswith("call") and "value" not in more
        value = more.pop("value", None)
        if computed:
            value = self.values.call(kind, target, args, kwargs)
        symbol: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        symbol.value = self.values.attribute(str(target)) if kind == "get_attr" else value
        symbol.unsettled = any(s.unsettled for s in symbols_in((args, kwargs)))
        note(symbol)
        is_weight = kind == "get_attr" and isinstance(symbol.value, Tensor)
        if is_weight or (kind.startswith("call") and depends_on_no_input(symbol.node)):
            symbol.node.meta["constant"] = True
        return symbol

    def proxy(self, node: Node) -> Proxy:
        """A symbol for a node."""
        return Symbol(node, self)

    def forget_after(self, last: Node | None, depth: int, grad_enabled: bool) -> None:
        """Undo the trace of a forward that turned out to be untraceable."""
        erased = set()
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            erased.add(node)
        for node in sorted(erased, reverse=True):
            self.graph.erase_node(node)
            if node in self._bases:
                self._counts[self._bases.pop(node)] -= 1
        self.attributes = {k: s for k, s in self.attributes.items() if s.node not in erased}
        self.assumed = {k: None for k in self.assumed if k[1] not in erased}
        while len(self.module_stack) > depth:
            self.module_stack.popitem()
        self.grad_enabled = grad_enabled
        torch.set_grad_enabled(grad_enabled)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, *rest: Any, **more: Any
    ) -> Node:
        """A node named by the module path that made it, so that all graphs of a net agree on names."""
        if torch.is_grad_enabled() != self.grad_enabled and not self.values.busy:
            self.grad_enabled = torch.is_grad_enabled()
            super().create_node("call_function", torch._C._set_grad_enabled, (self.grad_enabled,), {})
        site = self._site(kind, target) if kind.startswith("call") else str(target)
        if kind == "placeholder":
            site = f"{self.region}.{target}".removeprefix(".")
        base = site
        if kind.startswith("call"):
            number = self._counts[site] = self._counts.get(site, -1) + 1
            site = f"{site}_{number}" if number else site
        elif kind == "placeholder":
            self._counts.setdefault(site, 0)
        node = super().create_node(kind, target, args, kwargs, re.sub(r"\W", "_", site), *rest, **more)
        node.meta["site"] = site
        owner, cls = next(reversed(self.module_stack.values()), ("", None))
        node.meta["owner"] = (owner, getattr(cls, "__name__", ""))
        if kind.startswith("call"):
            self._bases[node] = base
        return node

    def _site(self, kind: str, target: Any) -> str:
        owner, cls = next(reversed(self.module_stack.values()), ("", None))
        operation = target if isinstance(target, str) else getattr(target, "__name__", "call").strip("_")
        if kind == "call_module":
            return str(target)
        is_modules_own = isinstance(cls, type) and issubclass(cls, WEIGHT_OWNING)
        return owner if is_modules_own else f"{owner}.{operation}".removeprefix(".")

    def create_arg(self, a: Any) -> Any:
        """What stands in a node for an argument: nodes, and containers as they are."""
        if is_symbol(a):
            if a.tracer is not self:
                raise Untraceable("it keeps values of an earlier call outside of its modules")
            return a.node
        if isinstance(a, dict) and type(a) is not dict:
            return self._container(a)
        if isinstance(a, Tensor):
            return self._stored(a)
        return super().create_arg(a)

    def _stored(self, tensor: Tensor) -> Node:
        """A node that reads a tensor of the model, or one that its Python made while it was traced."""
        path = self.paths.get(id(tensor)) or self.tensor_attrs.get(tensor)
        if path is None:
            path = f"_tensor_constant{len(self.constants)}"
            while path in self.tree.__dict__ or path in self.tree._buffers:
                path += "_"
            self.constants[path] = tensor
            self.paths[id(tensor)] = path
        if path not in self.attributes:
            node = self.create_node("get_attr", path, (), {})
            node.meta.update(tensor_meta=_extract_tensor_metadata(tensor), device=tensor.device, constant=True)
            value = self.values.like(tensor) if path in self.constants else self.values.attribute(path)
            self.attributes[path] = Symbol(node, self, value)
        return self.attributes[path].node

    def _container(self, a: Any) -> Node:
        items = {key: self.create_arg(value) for key, value in a.items()}
        if isinstance(a, OrderedDict) and not hasattr(a, "__dataclass_fields__"):
            return self.create_node("call_function", type(a), ([*items.items()],), {})
        if not all(isinstance(key, str) for key in items):
            raise Untraceable(f"it makes a {type(a).__name__}, which a graph cannot make")
        return self.create_node("call_function", type(a), (), items)


def depends_on_no_input(node: Node) -> bool:
    """Whether `node` computes from weights alone."""
    return bool(node.all_input_nodes) and all(map(is_constant, node.all_input_nodes))


_READS: frozenset[Any] = frozenset({getattr, operator.getitem, len, "size", "dim", "numel"}) | NUMERIC


def drop_unread(graph: Graph) -> None:
    """Erase what only unpacking, comparing and looking made, and nobody uses."""
    for node in reversed(graph.nodes):
        is_read = node.op == "get_attr" or (node.target in _READS and not _writes(node))
        if is_read and not node.users:
            graph.erase_node(node)


def _writes(node: Node) -> bool:
    return "tensor_meta" in node.meta and node.target not in (getattr, operator.getitem)
