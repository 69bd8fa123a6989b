"""Trace one forward into a graph: weights as `get_attr` nodes, activations as edges, modes and arguments as values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph

from fxcompress import calls
from fxcompress.draws import Draws
from fxcompress.islands import Island, has_hooks, is_leaf
from fxcompress.patches import Flag, symbolic_flags, watching
from fxcompress.recorder import Recorder, drop_unread
from fxcompress.snapshot import Snapshot
from fxcompress.symbols import (
    DataDependent,
    Symbol,
    Untraceable,
    assume,
    assume_keys,
    assume_length,
    describe,
)
from fxcompress.values import Values, note, quiet


class ForwardTracer(Recorder):
    """Traces the forward of one module of a tree; inner modules that cannot be traced become islands.

    `island_value(path, n)` is what an island yields at its n-th call, for the example inputs; `branched` holds every
    `training` flag that Python branched on and its value.
    """

    def __init__(
        self,
        root: nn.Module,
        values: Values,
        flags: Mapping[str, bool],
        islands: dict[str, Island],
        island_value: Callable[[str, int], Any],
    ) -> None:
        super().__init__(root, values)
        self.flags, self.islands, self.island_value = flags, islands, island_value
        self.branched: dict[str, bool] = {}
        self.modules = set(root.modules())
        self.island_calls: dict[str, int] = {}

    def trace_forward(self, path: str, arguments: Mapping[str, Any]) -> Graph:
        """The graph of a call of the module at `path` with `arguments` by parameter. Raises Untraceable, or whatever
        the forward raises."""
        module = self.tree.get_submodule(path)
        self.traced, self.given, self.region = module, arguments, path
        with symbolic_flags(self.tree), watching(self._record, lambda: self.values.busy), quiet(), torch.enable_grad():
            before, draws = Snapshot(self.tree), Draws()
            try:
                graph = self.trace(self.tree)
                draws.refuse()
                before.refuse_changes()
            finally:
                before.restore()
                self.is_done = True
        for name, tensor in self.constants.items():
            # Tensors that Python made once move with the net, but are no part of its state.
            self.tree.register_buffer(name, tensor, persistent=False)
        drop_unread(graph)
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Placeholders for all arguments, and a call of the traced module's forward on them."""
        path, module = self.region, self.traced
        signature = inspect.signature(module.forward)
        args, kwargs = calls.spread(signature, self._placeholders(signature))

        def call() -> Any:
            self.module_stack[path or "root"] = (path, type(module))
            forward = getattr(type(module), "forward").__get__(module)  # noqa: B009 - past a region's own forward
            return forward(*args, **kwargs)

        return call, []

    def _placeholders(self, signature: inspect.Signature) -> dict[str, Any]:
        symbols: dict[str, Symbol] = {}
        may_default = False  # Python allows none before a parameter without one, and each is handed over by position
        defaults: dict[str, tuple[Any, ...]] = {}
        for name, parameter in reversed([*signature.parameters.items()]):
            may_default = parameter.default is not parameter.empty and (may_default or not defaults)
            defaults[name] = (_storable(parameter.default),) if may_default else ()
        for name in signature.parameters:
            symbols[name] = self.create_proxy("placeholder", name, defaults[name], {})
        known: dict[int, Symbol] = {}
        return {name: self._opened(symbol, self.given[name], known) for name, symbol in symbols.items()}

    def _opened(self, symbol: Symbol, example: Any, known: dict[int, Symbol]) -> Any:
        """`example` with symbols in place of its tensors and numbers, read from `symbol`."""
        if isinstance(example, Tensor) and id(example) in known:
            return known[id(example)]
        inside = calls.parts(example)
        if inside is not None:
            read = calls.reader(example)
            items = {
                key: self._opened(self.create_proxy("call_function", read, (symbol, key), {}, value=item), item, known)
                for key, item in inside.items()
            }
            return calls.rebuild(example, items)
        if isinstance(example, Tensor):
            known[id(example)] = symbol
        elif not isinstance(example, (int, float)) or isinstance(example, bool):
            return example
        symbol.value = example
        note(symbol)
        return symbol

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A symbol for a parameter, buffer or flag that a forward reads."""
        if self.values.busy:
            return attr_val
        if isinstance(attr_val, Flag):
            path = f"{attr_val.path}.training".removeprefix(".")
        elif isinstance(attr_val, Tensor) and id(attr_val) in self.paths:
            path = self.paths[id(attr_val)]
        else:
            return attr_val
        if path not in self.attributes:
            value = False if isinstance(attr_val, Flag) else None
            self.attributes[path] = self.create_proxy("get_attr", path, (), {})
            if isinstance(attr_val, Flag):
                self.attributes[path].value = value
        return self.attributes[path]

    def to_bool(self, obj: Any) -> bool:
        """The answer of the example, noted as an assumption; of a flag, its value."""
        target = str(obj.node.target)
        if obj.node.op == "get_attr" and (target == "training" or target.endswith(".training")):
            self.branched[target] = self.flags[target]
            return self.flags[target]
        if isinstance(obj.value, Tensor):
            raise DataDependent("its Python code needs the value of a tensor")
        self.assume(assume, obj, bool(obj.value) if isinstance(obj.value, bool) else obj.value)
        return bool(obj.value)

    def assume(self, check: Any, symbol: Symbol, expected: Any) -> None:
        """Note that Python decided on a symbol's value."""
        if symbol.unsettled and check is assume:
            raise DataDependent(f"its Python code needs {describe(symbol.node)}, which an island computes from data")
        if (check, symbol.node) not in self.assumed:
            self.assumed[check, symbol.node] = None
            args = (symbol, expected, describe(symbol.node))
            super().create_proxy("call_function", check, args, {})

    def torch_call(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Record a call of a torch function or method on symbols; attention is traced through."""
        if function is F.multi_head_attention_forward:
            return _past_dispatch(function)(*args, **kwargs)
        if isinstance(function, torch._C.ScriptMethod):
            raise Untraceable("it calls a scripted module")
        if torch.overrides.is_tensor_method_or_property(function):
            name = function.__name__
            if name == "__get__":
                return self.create_proxy("call_function", getattr, (args[0], _property_name(function)), {})
            return self.create_proxy("call_method", name, args, kwargs)
        return self.create_proxy("call_function", function, args, kwargs)

    def _record(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return self.create_proxy("call_function", function, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays a call."""
        return is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Trace a module, or leave it a call; what cannot be traced becomes an island, the innermost that is enough."""
        if self.values.busy:
            return forward(*args, **kwargs)
        if m not in self.modules:  # made in a forward, as a slice of a Sequential is
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        if path not in self.islands and has_hooks(m):
            self.islands[path] = Island(type(m).__name__, "hooks stand on it, which run as they are", hooked=True)
        if path in self.islands:
            return self._call_island(path, args, kwargs)
        mark = (next(iter(reversed(self.graph.nodes)), None), len(self.module_stack), self.grad_enabled)
        before, draws = Snapshot(m), Draws()
        try:
            result = super().call_module(m, forward, args, kwargs)
            draws.refuse()
            before.refuse_changes()
            return result
        except Exception as error:
            before.restore()
            draws.restore()
            self.forget_after(*mark)
            self.islands[path] = Island.of(m, error)
        return self._call_island(path, args, kwargs)

    def _call_island(self, path: str, args: Any, kwargs: dict[str, Any]) -> Any:
        number = self.island_calls[path] = self.island_calls.get(path, -1) + 1
        value = self.island_value(path, number)
        symbol = self.create_proxy("call_module", path, args, kwargs, value=value)
        symbol.unsettled = symbol.unsettled or self.islands[path].depends_on_data
        return self._unpacked(symbol)

    def _unpacked(self, symbol: Symbol) -> Any:
        """What an island yields, containers as they are."""
        inside = calls.parts(symbol.value)
        if inside is None:
            return symbol if isinstance(symbol.value, (Tensor, int, float)) else self._plain(symbol)
        if isinstance(symbol.value, dict):
            self.assume(assume_keys, symbol, tuple(inside))
        elif isinstance(symbol.value, (tuple, list)):
            self.assume(assume_length, symbol, len(inside))
        read = calls.reader(symbol.value)
        items = {k: self.create_proxy("call_function", read, (symbol, k), {}, value=v) for k, v in inside.items()}
        return calls.rebuild(symbol.value, {k: self._unpacked(item) for k, item in items.items()})

    def _plain(self, symbol: Symbol) -> Any:
        if not isinstance(symbol.value, (type(None), str, torch.dtype, torch.device)):
            raise Untraceable(f"an island in it yields a {type(symbol.value).__name__}, whose inside cannot be seen")
        self.assume(assume, symbol, symbol.value)
        return symbol.value


def _past_dispatch(function: Any) -> Callable[..., Any]:
    """`function` of torch.nn.functional as its Python body, which its symbols would otherwise keep from running."""

    def call(*args: Any, **kwargs: Any) -> Any:
        functional: Any = F
        original = functional.has_torch_function

        def once(_: Any) -> bool:
            functional.has_torch_function = original
            return False

        functional.has_torch_function = once
        try:
            return function(*args, **kwargs)
        finally:
            functional.has_torch_function = original

    return call


def _property_name(getter: Any) -> str:
    return str(getter.__self__.__name__)


def _storable(default: Any) -> Any:
    return default if isinstance(default, (int, float, str, bool, torch.dtype, torch.device)) else None
