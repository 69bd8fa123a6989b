"""Random states: what a forward draws, and how to put everything back that it drew or wrote."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fxcompress.symbols import Untraceable


class Draws:
    """Random states as they were: a draw outside of the graph would be the same at every call of the net."""

    def __init__(self) -> None:
        self._torch, self._python = torch.get_rng_state(), random.getstate()
        self._numpy: Any = np.random.get_state()

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def refuse(self) -> None:
        """Put the states back, and raise Untraceable if anything was drawn since."""
        same = torch.equal(self._torch, torch.get_rng_state()) and self._python == random.getstate()
        numpy_state: Any = np.random.get_state()
        same = same and self._numpy[2] == numpy_state[2] and np.array_equal(self._numpy[1], numpy_state[1])
        self.restore()
        if not same:
            raise Untraceable("it draws random numbers that a graph would hold as constants")


@contextmanager
def kept(root: nn.Module, but: str = "") -> Iterator[None]:
    """Put buffers (except those whose path begins with `but`, if given) and random states back at the end."""
    buffers = {name: b for name, b in root.named_buffers() if not (but and name.startswith(but))}
    values = {name: b.clone() for name, b in buffers.items()}
    devices = sorted({p.device.index for p in root.parameters() if p.device.type == "cuda"})
    draws = Draws()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        draws.restore()
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(values[name])
