"""The captured net: a GraphModule that keeps the model's modules, parameters, buffers and modes as they are."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fxcompress.capture import Captured
from fxcompress.errors import CaptureError, InputError

Variant = tuple[bool, ...]


class CompressedModule(GraphModule):
    """A captured model, rewritten by passes and trained as before.

    `graph` is the graph of the current mode. Where the model's Python branches on `training`, there is one graph a mode
    over the same modules, parameters, pruners and quantizers, and a call takes the one that fits the modules' flags.
    """

    schedule: Any
    spec: Any

    def __init__(self, captured: Captured, class_name: str) -> None:
        super().__init__(nn.Module(), Graph(), class_name)
        root = captured.root
        _refuse_shadowing(root)
        for slot in ("_parameters", "_buffers", "_modules"):
            self.__dict__[slot].update(root.__dict__[slot])
        self._non_persistent_buffers_set |= root._non_persistent_buffers_set
        self.__dict__.update({k: v for k, v in root.__dict__.items() if k not in self.__dict__})
        self.training = root.training
        self._guards, self._variants = captured.guards, dict(captured.variants)
        self.recompile()

    @property
    def graph(self) -> Graph:
        """The graph of the current mode."""
        return self._variants[self._current()]

    @graph.setter
    def graph(self, graph: Graph) -> None:
        self.__dict__.setdefault("_guards", ())
        self.__dict__.setdefault("_variants", {})[self._current()] = graph
        self.recompile()

    @property
    def evaluation_graph(self) -> Graph:
        """The graph that runs when all modules are in evaluation mode."""
        return self._variants[(False,) * len(self._guards)]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The flags that each graph was captured for; one empty tuple where nothing branches on a mode."""
        return tuple(self._variants)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs of all modes."""
        return tuple(self._variants.values())

    def views(self) -> Iterator[GraphModule]:
        """A GraphModule on the same modules for each graph, in turn, to read."""
        return (_View(self, graph) for graph in self._variants.values())

    def each_variant(self) -> Iterator[GraphModule]:
        """The views for passes to rewrite; the net recompiles when all are done."""
        yield from self.views()
        self.recompile()

    def recompile(self) -> Any:
        """Make `forward` from the graphs as they are now."""
        forwards = {}
        code = None
        for flags, graph in self._variants.items():
            graph.owning_module = self
            self.__dict__["_graph"] = graph
            code = super().recompile()
            forwards[flags] = type(self).forward
        if len(forwards) > 1:
            type(self).forward = _dispatch(forwards, self._guards)
        return code

    def get_extra_state(self) -> torch.Tensor:
        """The schedule's step, so that a plain `state_dict` resumes it."""
        return torch.tensor(self.schedule.steps if hasattr(self, "schedule") else 0)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Move the schedule to the step that was saved."""
        if hasattr(self, "schedule"):
            self.schedule.restore(int(state))

    def _current(self) -> Variant:
        flags = tuple(_flag(self, path) for path in self._guards)
        if flags not in self._variants and self._variants:
            raise _mixed_modes(self._guards, flags)
        return flags

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedModule:
        net = type(self).__new__(type(self))
        memo[id(self)] = net
        graphs = {flags: copy.deepcopy(graph) for flags, graph in self._variants.items()}
        state = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_variants")}
        net.__dict__.update(copy.deepcopy(state, memo))
        net.__dict__["_variants"] = graphs
        _name_like(net, self)
        net.recompile()
        return net

    def __reduce__(self) -> tuple[Any, ...]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_variants")}
        graphs = {flags: _to_records(graph) for flags, graph in self._variants.items()}
        return (_new, (type(self).__name__,), (state, graphs))

    def __setstate__(self, state: tuple[dict[str, Any], dict[Variant, list[Any]]]) -> None:
        self.__dict__.update(state[0])
        self.__dict__["_variants"] = {flags: _from_records(records) for flags, records in state[1].items()}
        self.recompile()


class _View(GraphModule):
    """One graph of a net as a GraphModule of its own, on the net's modules; never run by users."""

    def __init__(self, net: CompressedModule, graph: Graph) -> None:
        nn.Module.__init__(self)
        for slot in ("_parameters", "_buffers", "_modules"):
            self.__dict__[slot] = net.__dict__[slot]
        self.meta = {}
        self.__dict__["_graph"] = graph
        self.__dict__.update({k: v for k, v in net.__dict__.items() if k not in self.__dict__})
        self.training = net.training
        graph.owning_module = self

    def recompile(self) -> Any:
        """Nothing: the net compiles its graphs once, after all passes."""


def _refuse_shadowing(root: nn.Module) -> None:
    own = {*dir(CompressedModule), "graph", "schedule", "spec", "meta", "compression", "_graph", "_guards", "_variants"}
    own -= set(dir(nn.Module))
    for name in (*root._modules, *root._parameters, *root._buffers):
        if name in own:
            raise CaptureError(f"the model has an attribute '{name}', which a compressed net uses itself; rename it")


def _dispatch(forwards: Mapping[Variant, Callable[..., Any]], guards: tuple[str, ...]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        flags = tuple(_flag(self, path) for path in guards)
        if flags not in forwards:
            raise _mixed_modes(guards, flags)
        return forwards[flags](self, *args, **kwargs)

    forward.__wrapped__ = next(iter(forwards.values()))  # type: ignore[attr-defined]
    return forward


def _mixed_modes(guards: tuple[str, ...], flags: Variant) -> InputError:
    state = ", ".join(f"'{path}' = {flag}" for path, flag in zip(guards, flags, strict=True))
    return InputError(
        f"the model's code branches on {state}, a mix that was not captured; call net.train() or net.eval()"
    )


def _flag(module: nn.Module, path: str) -> bool:
    *owner, name = path.split(".")
    for part in owner:
        module = getattr(module, part)
    return bool(getattr(module, name))


def _new(name: str) -> CompressedModule:
    net: CompressedModule = CompressedModule.__new__(CompressedModule)
    type(net).__name__ = name
    return net


def _name_like(net: nn.Module, other: nn.Module) -> None:
    type(net).__name__ = type(other).__name__


class _Ref(str):
    """A node's name in place of the node, in a pickled graph."""

    __slots__ = ()


class _Function(tuple[str, str]):
    """A function's module and name in place of the function (some of torch's cannot be pickled themselves)."""

    __slots__ = ()


def _to_records(graph: Graph) -> list[Any]:
    return [
        (n.op, n.name, _pack_target(n.target), *torch.fx.node.map_arg((n.args, n.kwargs), lambda a: _Ref(a.name)),
         n.type, {k: n.meta[k] for k in ("site", "tensor_meta") if k in n.meta})
        for n in graph.nodes
    ]  # fmt: skip


def _from_records(records: list[Any]) -> Graph:
    graph, nodes = Graph(), dict[str, Node]()
    for op, name, target, args, kwargs, type_expr, meta in records:
        args, kwargs = _map_refs((args, kwargs), nodes)
        node = graph.create_node(op, _unpack_target(target), args, kwargs, name, type_expr)
        node.meta.update(meta)
        nodes[name] = node
    return graph


def _map_refs(value: Any, nodes: Mapping[str, Node]) -> Any:
    return torch.utils._pytree.tree_map(lambda a: nodes[a] if isinstance(a, _Ref) else a, value)


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
