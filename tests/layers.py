"""What the tests of calls share."""

from __future__ import annotations

from typing import Any

from helpers import rows
from torch import nn


class Layer(nn.Module):
    """One linear layer, for a forward to call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)


A, B = rows(6), rows(6).flip(0)
Args = tuple[tuple[Any, ...], dict[str, Any]]


def given(*args: Any, **kwargs: Any) -> Args:
    return args, kwargs
