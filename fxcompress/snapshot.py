"""What a tree of modules holds besides its tensors' values, to find out and undo what a forward changes."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcompress.symbols import Untraceable


class Snapshot:
    """The attributes of all modules of a tree, and the items of their plain containers."""

    def __init__(self, root: nn.Module) -> None:
        self._states = {module: _state(module) for module in root.modules()}

    def refuse_changes(self) -> None:
        """Raise Untraceable if an attribute is another than it was: a graph would not set it again."""
        for module, state in self._states.items():
            now = _state(module)
            exempt = computed_anew(module)
            for name in {**state, **now}:
                if name not in exempt and not _same(state.get(name), now.get(name)):
                    raise Untraceable(f"it changes '{name}' of {type(module).__name__}, which a graph cannot do")
        self.restore()

    def restore(self) -> None:
        """Put all attributes back."""
        for module, state in self._states.items():
            for name in [n for n in module.__dict__ if n not in state]:
                del module.__dict__[name]
            for name, (value, items) in state.items():
                module.__dict__[name] = value
                if items is not None and not _same((value, items), (value, _items(value))):
                    value.clear()
                    (value.update if isinstance(value, (dict, set)) else value.extend)(items)


def computed_anew(module: nn.Module) -> set[str]:
    """Attributes that are computed before each forward: weights under torch's older weight and spectral norm, lists of
    a recurrent layer's weights."""
    if isinstance(module, nn.RNNBase):
        return {"_flat_weights", "_flat_weight_refs"}
    hooks: Any = module._forward_pre_hooks.values()
    return {hook.name for hook in hooks if hasattr(hook, "compute_weight")}


def _state(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    return {name: (value, _items(value)) for name, value in module.__dict__.items()}


def _items(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict, set) else None


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None or first[0] is not second[0]:
        return False
    a, b = first[1], second[1]
    if a is None or isinstance(a, set):
        return bool(a == b)
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k in b and v is b[k] for k, v in a.items())
    return all(v is w for v, w in zip(a, b, strict=True))
