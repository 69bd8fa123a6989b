"""What `torch.compile` makes of a net: one more graph after each step that changes what a forward pass does, and no
limit on how many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from fxcompress.graph import modules_of_type
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer


@contextmanager
def changing(net: nn.Module) -> Iterator[None]:
    """While this lasts pruners and quantizers may be switched; if any is, compiled graphs of `net` are of the past.

    torch.compile counts the graphs of one code object and runs uncompiled from its limit on. The flags that a forward
    read do not come back, so what is compiled from now on is another code object's.
    """
    before = _flags(net)
    yield
    if _flags(net) != before:
        cls: Any = type(net)
        cls.forward = _twin(cls.forward)


def _flags(net: nn.Module) -> list[tuple[bool, ...]]:
    return [m.flags for _, m in modules_of_type(net, Pruner, Quantizer)]


def _twin(function: FunctionType) -> FunctionType:
    code = function.__code__.replace()
    twin = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    twin.__dict__.update(function.__dict__)
    return twin
