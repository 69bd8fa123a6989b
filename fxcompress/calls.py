"""How a forward is called: its arguments by name, and the pattern of a call that decides which graph fits it."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import CaptureError
from fxcompress.symbols import Untraceable

_EITHER, _NONE = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
_PLAIN = (bool, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, type(...))


def bind(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs (a tensor, a tuple of positional or a dict of keyword ones) as `{parameter: value}`.

    Raises CaptureError if they do not fit the signature of the model's forward.
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    args, kwargs = ((), example_inputs) if isinstance(example_inputs, dict) else (args, {})
    signature = inspect.signature(model.forward)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit '{type(model).__name__}.forward{signature}': {error}; "
            "pass a tensor, a tuple of positional inputs or a dict of keyword inputs"
        ) from None


def arguments(signature: inspect.Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """A value for every parameter: what was given, or its default."""
    bound = inspect.BoundArguments(signature, OrderedDict(given))
    bound.apply_defaults()
    return bound.arguments


def spread(signature: inspect.Signature, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`values` by parameter as positional and keyword arguments of a call: by keyword where there is a default, as
    people call it, since wrappers around a forward may look for keywords."""
    bound = inspect.BoundArguments(signature, OrderedDict(values))
    parameters = signature.parameters
    rest = {name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL}
    if any(values.get(name) for name in rest):
        return bound.args, bound.kwargs
    named = {k: v for k, v in values.items() if parameters[k].kind is _EITHER and parameters[k].default is not _NONE}
    others = OrderedDict((k, v) for k, v in values.items() if k not in named and k not in rest)
    first = inspect.BoundArguments(signature, others)
    return first.args, {**named, **first.kwargs}


def pattern(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a graph is made for: structure of the arguments, which are the same tensor, and every value that is neither
    a tensor nor a number.

    Raises Untraceable if an argument is an object whose inside cannot be seen.
    """
    number = _among() if torch.compiler.is_compiling() else _by_id()
    return tuple(_pattern(value, name, number) for name, value in values.items())


def _by_id() -> Callable[[Tensor], int]:
    """A function that numbers tensors as they come, and the same one alike."""
    seen: dict[int, int] = {}
    return lambda tensor: seen.setdefault(id(tensor), len(seen))


def _among() -> Callable[[Tensor], int]:
    """The same by comparing, since a compiled forward would be bound to the tensors whose `id` it asks for."""
    seen: list[Tensor] = []

    def number(tensor: Tensor) -> int:
        for place, other in enumerate(seen):
            if other is tensor:
                return place
        seen.append(tensor)
        return len(seen) - 1

    return number


def _pattern(value: Any, name: str, number: Callable[[Tensor], int]) -> Any:
    if isinstance(value, Tensor):
        return number(value)
    if isinstance(value, _PLAIN):
        return ("is", value)
    if isinstance(value, (int, float)):
        return type(value)
    inside = parts(value)
    if inside is None:
        raise Untraceable(f"argument '{name}' is a {type(value).__name__}, whose inside cannot be seen")
    return (type(value), *((key, _pattern(item, name, number)) for key, item in inside.items()))


def parts(value: Any) -> dict[Any, Any] | None:
    """Items of a container by index, key or field; None if `value` is no container we know."""
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return None


def reader(value: Any) -> Callable[[Any, Any], Any]:
    """The function that reads an item of a container like `value`."""
    return operator.getitem if isinstance(value, (tuple, list, dict)) else getattr


def rebuild(value: Any, items: Mapping[Any, Any]) -> Any:
    """A container like `value` around other items."""
    kind: Any = type(value)
    if isinstance(value, torch.Size):
        return tuple(items.values())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*items.values())
    if isinstance(value, (tuple, list)):
        return kind(items.values())
    if dataclasses.is_dataclass(value):  # a ModelOutput is a dict as well
        return kind(**items)
    twin = kind()
    twin.update(items)
    return twin
