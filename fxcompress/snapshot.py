"""What a tree of modules holds besides its parameters and buffers, to find out and undo what a forward changes."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.pruner import Pruner
from fxcompress.symbols import Untraceable

DEEPEST, LARGEST_TENSOR, MOST_FIELDS = 3, 2**16, 16
"""How far containers are looked into; larger tensors are not put back, objects with more fields not looked into."""

_OPAQUE = (nn.Module, nn.Parameter, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, torch.dtype)


_ATOMS = frozenset({type(None), bool, int, float, str, tuple})
_CONTAINERS = frozenset({list, dict, set, OrderedDict, defaultdict, deque})


class Snapshot:
    """The attributes of all modules of a tree, and what plain containers, small objects and tensors in them hold."""

    def __init__(self, root: nn.Module) -> None:
        self._states = {module: _state(module) for module in root.modules()}

    def refuse_changes(self) -> None:
        """Raise Untraceable if an attribute is another than it was: a graph would not set it again."""
        for module, state in self._states.items():
            changed = _changed(module, state)
            for name in changed:
                if name not in computed_anew(module):
                    raise Untraceable(f"it changes '{name}' of {type(module).__name__}, which a graph cannot do")
            if changed:
                _restore(module, state)

    def restore(self) -> None:
        """Put all attributes back."""
        for module, state in self._states.items():
            _restore(module, state)


def _changed(module: nn.Module, state: dict[str, _Kept]) -> list[str]:
    """The attributes that are others than they were."""
    now = module.__dict__
    missing = object()
    changed = [
        name
        for name, kept in state.items()
        if (value := now.get(name, missing)) is not kept.value or (kept.items is not None and kept.differs(value))
    ]
    return changed if len(now) == len(state) else [*changed, *(name for name in now if name not in state)]


def _restore(module: nn.Module, state: dict[str, _Kept]) -> None:
    for name in [n for n in module.__dict__ if n not in state]:
        del module.__dict__[name]
    for name, kept in state.items():
        module.__dict__[name] = kept.value
        kept.restore()


def computed_anew(module: nn.Module) -> set[str]:
    """Attributes that follow from others: weights under torch's older weight and spectral norm, lists of a recurrent
    layer's weights, a pruner's view of its mask."""
    if isinstance(module, Pruner):
        return {"_bytes"}
    if isinstance(module, nn.RNNBase):
        return {"_flat_weights", "_flat_weight_refs"}
    hooks: Any = module._forward_pre_hooks.values()
    return {hook.name for hook in hooks if hasattr(hook, "compute_weight")}


class _Kept:
    """A value and what was in it: items, fields, or a tensor's data."""

    __slots__ = ("inside", "items", "value")

    def __init__(self, value: Any, depth: int) -> None:
        """`value` and so many levels inside of what it holds."""
        self.value = value
        self.items: Any = None
        self.inside: tuple[_Kept, ...] = ()
        if type(value) in _ATOMS:
            return
        if isinstance(value, Tensor) and not isinstance(value, _OPAQUE):
            small = value.numel() <= LARGEST_TENSOR and not value.is_meta
            self.items = (value._version, value.detach().clone() if small else None)
            return
        holder = _holder(value)
        if holder is not None:
            self.items = holder.copy()
            if depth:
                parts = holder.values() if isinstance(holder, dict) else holder
                self.inside = tuple(_Kept(v, depth - 1) for v in parts if _may_change(v))

    def differs(self, now: Any) -> bool:
        """Whether the value is another object, or holds others than it did."""
        if now is not self.value:
            return True
        if self.items is None:
            return False
        if isinstance(now, Tensor):
            return bool(now._version != self.items[0])
        if not _same_items(self.items, _holder(now)):
            return True
        return any(kept.differs(kept.value) for kept in self.inside)

    def restore(self) -> None:
        """Put back what was in the value."""
        if self.items is None or not self.differs(self.value):
            return
        if isinstance(self.value, Tensor):
            if self.items[1] is not None:
                with torch.no_grad():
                    self.value.copy_(self.items[1])
            return
        holder: Any = _holder(self.value)
        holder.clear()
        (holder.extend if isinstance(holder, (list, deque)) else holder.update)(self.items)
        for kept in self.inside:
            kept.restore()


def _state(module: nn.Module) -> dict[str, _Kept]:
    # What nn.Module itself keeps is looked at from outside only: tensors in it are symbols to a forward.
    return {name: _Kept(value, 0 if name.startswith("_") else DEEPEST) for name, value in module.__dict__.items()}


def _holder(value: Any) -> Any:
    """The container that a value is or, for a small plain object, keeps its fields in."""
    if type(value) in _CONTAINERS:
        return value
    fields = getattr(value, "__dict__", None)
    is_object = isinstance(fields, dict) and len(fields) <= MOST_FIELDS and not isinstance(value, _OPAQUE)
    return fields if is_object else None


def _may_change(value: Any) -> bool:
    return isinstance(value, Tensor) or _holder(value) is not None


def _same_items(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, set):
        return bool(a == b)
    if isinstance(a, dict):
        return all(k in b and v is b[k] for k, v in a.items())
    return all(v is w for v, w in zip(a, b, strict=True))
