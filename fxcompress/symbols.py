"""What stands for a value while a model is captured: a proxy that knows the example's value.

Python that needs to decide (`if`, `int()`, `len()`, iteration) gets the example's answer, and the graph gets an
`assume` node that refuses a call for which the answer would be another. Values that are only computed with stay nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node, Proxy
from torch.fx.node import has_side_effect

from fxcompress.errors import InputError


class Untraceable(Exception):
    """Why a module's forward cannot be a graph; whoever called the module makes it an island."""


class DataDependent(Untraceable):
    """It depends on the data in a tensor, which no graph can follow."""


def assume(value: Any, captured: Any, what: str) -> None:
    """Refuse a call for which Python would have decided otherwise than when the model was captured. Raises
    InputError."""
    if value != captured:
        raise InputError(
            f"the model was captured where {what} is {captured!r}, and now it is {value!r}; compress with example "
            "inputs like those that the net is called with"
        )


def assume_length(value: Any, captured: int, what: str) -> None:
    """Refuse a call that gives a sequence another length. Raises InputError."""
    assume(len(value), captured, f"the length of {what}")


def assume_keys(value: Any, captured: tuple[Any, ...], what: str) -> None:
    """Refuse a call that gives a mapping other keys. Raises InputError."""
    assume(tuple(value), captured, f"the keys of {what}")


ASSUMPTIONS: tuple[Any, ...] = (assume, assume_length, assume_keys)
"""What checks a call and computes nothing."""

for _check in ASSUMPTIONS:
    has_side_effect(_check)


class Symbol(Proxy):
    """A proxy with the example's value: a fake tensor, a number, a size, or a container of them.

    `unsettled` tells that another call may give it another value whatever its inputs (it comes out of an island that
    depends on data), so that nothing may be decided on it.
    """

    tracer: Any
    _SLOTS = ("tracer", "node", "value", "unsettled")

    def __init__(self, node: Node, tracer: Any, value: Any = None) -> None:
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "unsettled", False)
        super().__init__(node, tracer)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the value, so that `isinstance` answers as it does in the model."""
        return torch.Tensor if isinstance(self.value, torch.Tensor) else type(self.value)

    def __getattr__(self, name: str) -> Any:
        value = object.__getattribute__(self, "value")
        if name.startswith("__"):
            raise AttributeError(name)
        if isinstance(value, torch.Tensor):
            return self._tensor_attribute(value, name)
        found = getattr(value, name)
        if isinstance(value, torch.device):  # its parts go where only plain values may
            self.tracer.assume(assume, self, value)
            return found
        return _Method(self, name) if callable(found) else self._call(getattr, self, name)

    def _tensor_attribute(self, value: torch.Tensor, name: str) -> Any:
        if name in ("requires_grad", "grad", "grad_fn", "is_leaf"):
            raise Untraceable(f"it reads '{name}' of a tensor, which no graph knows")
        with self.tracer.values.aside():
            found = getattr(value, name)
        if callable(found):
            return _Method(self, name)
        if name.startswith("_") or (self.node.op == "get_attr" and name in ("shape", "ndim")):
            return found
        return self._call(getattr, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._SLOTS:
            raise Untraceable(f"it sets '{name}' of a tensor")
        object.__setattr__(self, name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._call(operator.setitem, self, key, value)

    def __eq__(self, other: Any) -> Any:
        # A cache outside of the model may keep symbols as keys: they are like nothing that a later call asks for.
        if self.tracer.is_done or (is_symbol(other) and other.tracer is not self.tracer):
            return False
        return self._call(operator.eq, self, other)

    def __bool__(self) -> bool:
        return bool(self.tracer.to_bool(self))

    def __len__(self) -> int:
        length = len(self.value)
        self.tracer.assume(assume_length, self, length)
        return length

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, torch.Tensor):
            return iter(self.unbind(0))
        if not isinstance(self.value, (tuple, list)):
            raise Untraceable(f"it iterates over a {type(self.value).__name__}")
        return iter([self._call(operator.getitem, self, i) for i in range(len(self))])

    def __index__(self) -> int:
        return operator.index(self._decided())

    def __int__(self) -> int:
        return int(self._decided())

    def __float__(self) -> float:
        return float(self._decided())

    def __format__(self, spec: str) -> str:
        return format(self._decided(), spec)

    def __str__(self) -> str:
        return str(self._decided())

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __round__(self, *digits: int) -> Any:
        return self._call(round, self, *digits)

    def __hash__(self) -> int:
        return id(self) if isinstance(self.value, torch.Tensor) else hash(self._decided())

    def __contains__(self, item: Any) -> bool:
        return bool(self._call(operator.contains, self, item))

    def _decided(self) -> Any:
        if isinstance(self.value, torch.Tensor):
            raise DataDependent("its Python code needs the value of a tensor")
        self.tracer.assume(assume, self, self.value)
        return self.value

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, args, {})

    @classmethod
    def __torch_function__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record a call of torch."""
        tracer = _tracer_of((args, kwargs))
        return tracer.torch_call(function, args, kwargs or {})


class _Method:
    """A method of a symbol's value, to be called."""

    def __init__(self, owner: Symbol, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


def is_symbol(value: Any) -> bool:
    """Whether `value` is a symbol, whatever class it claims."""
    return type(value) is Symbol


def symbols_in(value: Any) -> Iterator[Symbol]:
    """All symbols in nested tuples, lists, dicts and slices."""
    kind = type(value)
    if kind is Symbol:
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from symbols_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from symbols_in(item)
    elif kind is slice:
        yield from symbols_in((value.start, value.stop, value.step))


def map_symbols(value: Any, function: Callable[[Symbol], Any]) -> Any:
    """`value` with `function` of every symbol in place of it."""
    kind = type(value)
    if kind is Symbol:
        return function(value)
    if isinstance(value, tuple):
        items = [map_symbols(v, function) for v in value]
        return kind(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_symbols(v, function) for v in value]
    if kind is dict:
        return {k: map_symbols(v, function) for k, v in value.items()}
    if kind is slice:
        return slice(*(map_symbols(v, function) for v in (value.start, value.stop, value.step)))
    return value


def _tracer_of(value: Any) -> Any:
    return next(symbols_in(value)).tracer


def _recording(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def record(self: Symbol, *others: Any) -> Any:
        args = (others[0], self) if reflected else (self, *others)
        return self.tracer.create_proxy("call_function", function, args, {})

    return record


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift", "and", "or", "xor")
_OTHER = ("ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "getitem")
_FUNCTIONS = {name: getattr(operator, f"{name}_" if name in ("and", "or") else name) for name in (*_BINARY, *_OTHER)}
NUMERIC = frozenset({operator.eq, *_FUNCTIONS.values()})
"""Python's operators that write to none of their operands."""

for _name, _function in _FUNCTIONS.items():
    setattr(Symbol, f"__{_name}__", _recording(_function))
for _name in _BINARY:
    setattr(Symbol, f"__r{_name}__", _recording(_FUNCTIONS[_name], reflected=True))
    # As on a tensor, `y += x` writes to `y`, so that other names of `y` see it.
    setattr(Symbol, f"__i{_name}__", _recording(getattr(operator, f"i{_name}")))


def describe(value: Any, depth: int = 6) -> str:
    """The expression a node stands for, as people write it: `x.shape[2] % 7`; "..." further down than `depth`."""
    if not isinstance(value, Node):
        return ", ".join(describe(v, depth) for v in value) if isinstance(value, tuple) else repr(value)
    name = value.target if isinstance(value.target, str) else getattr(value.target, "__name__", str(value.target))
    if value.op in ("placeholder", "get_attr", "call_module") or "tensor_meta" in value.meta:
        return str(value.meta.get("site", value.name))
    if depth == 0:
        return "..."
    args = [describe(a, depth - 1) for a in value.args]
    if value.target is getattr:
        return f"{args[0]}.{value.args[1]}"
    if value.target is operator.getitem:
        return f"{args[0]}[{args[1]}]"
    if name in _SIGNS and len(args) == 2:
        return f"{args[0]} {_SIGNS[name]} {args[1]}"
    return f"{args[0]}.{name}({', '.join(args[1:])})" if value.op == "call_method" else f"{name}({', '.join(args)})"


_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "eq": "==",
    "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
