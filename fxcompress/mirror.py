"""A model's modules again, without its tensors: what capture may touch while the model itself stays as it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import nn

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


def mirror(model: nn.Module) -> nn.Module:
    """A tree of shallow copies of `model`'s modules that shares its parameters and buffers."""
    copies: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        twin: nn.Module = object.__new__(type(module))  # a GraphModule's own __new__ would make a class
        twin.__dict__.update(module.__dict__)
        for slot in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[slot] = dict(module.__dict__[slot])
        for slot in HOOKS:
            twin.__dict__[slot] = module.__dict__.get(slot, OrderedDict()).copy()
        twin.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
        _as_written(twin)
        copies[module] = twin
    for twin in copies.values():
        twin._modules.update({k: m and copies[m] for k, m in twin._modules.items()})
        twin.__dict__.update({k: _remap(v, copies) for k, v in twin.__dict__.items() if not k.startswith("_")})
    return copies[model]


def without_hooks(root: nn.Module) -> nn.Module:
    """`root`, a mirror, after its users' hooks are gone; those that compute weights stay."""
    for module in root.modules():
        for slot in HOOKS:
            hooks = module.__dict__[slot]
            module.__dict__[slot] = OrderedDict((k, h) for k, h in hooks.items() if hasattr(h, "compute_weight"))
    return root


def _as_written(twin: nn.Module) -> None:
    """Give a twin the forward that its module had before a graph took its place."""
    forward: Any = twin.__dict__.get("forward")
    if hasattr(forward, "written"):
        del twin.__dict__["forward"]
        if forward.written is not None:
            twin.__dict__["forward"] = forward.written


def _remap(value: Any, copies: Mapping[nn.Module, nn.Module]) -> Any:
    """`value` with the copies in place of modules that it holds in plain containers or is a method of."""
    if isinstance(value, nn.Module):
        return copies.get(value, value)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, copies.get(value.__self__, value.__self__))
    if type(value) in (list, tuple):
        return type(value)(_remap(v, copies) for v in value)
    if type(value) is dict:
        return {k: _remap(v, copies) for k, v in value.items()}
    return value
