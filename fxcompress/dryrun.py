"""Run a net so that only observers notice."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fxcompress import calls
from fxcompress.draws import kept
from fxcompress.graph import COMPRESSION
from fxcompress.module import CompressedModule
from fxcompress.operators import BATCH_NORMS
from fxcompress.sharded import split


@torch.no_grad()
def observe_only(net: CompressedModule, batches: Iterable[Mapping[str, Any]], modes: Iterable[bool]) -> int:
    """Call `net` on each of `batches` (inputs by parameter name) in each mode of training, its pruners and quantizers
    observing. Returns how many batches there were.

    The model's buffers, the random state and all modes are left as they were.
    """
    count = 0
    with untouched(net):
        for count, inputs in enumerate(batches, start=1):  # noqa: B007 - the last is returned
            for training in modes:
                _set_modes(net, training)
                args, kwargs = calls.spread(inspect.signature(net.forward), inputs)
                net(*args, **kwargs)
    split(net)
    return count


def _set_modes(net: CompressedModule, training: bool) -> None:
    net.train(training)
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()
    net.get_submodule(COMPRESSION).train()


@contextmanager
def untouched(net: CompressedModule) -> Iterator[None]:
    """Put the model's buffers, the random state and all modes back at the end."""
    modes = {module: module.training for module in net.modules()}
    try:
        with kept(net, but=f"{COMPRESSION}."):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
