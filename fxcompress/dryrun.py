"""Run a net so that only observers notice."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fxcompress import calls
from fxcompress.draws import kept
from fxcompress.graph import COMPRESSION
from fxcompress.module import CompressedModule
from fxcompress.operators import BATCH_NORMS


@torch.no_grad()
def observe_only(net: CompressedModule, inputs: Mapping[str, Any]) -> None:
    """Call `net` on `inputs` with its pruners and quantizers observing, once for each of its graphs.

    The model's buffers, the random state and all modes are left as they were.
    """
    branches = net.islands or any(v.flags for v in net.variants)
    for training in (net.training, not net.training) if branches else (False,):
        with _untouched(net):
            net.train(training)
            for norm in [m for m in net.modules() if isinstance(m, BATCH_NORMS)]:
                norm.eval()
            net.get_submodule(COMPRESSION).train()
            args, kwargs = calls.spread(inspect.signature(net.forward), inputs)
            net(*args, **kwargs)


@contextmanager
def _untouched(net: CompressedModule) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    try:
        with kept(net, but=f"{COMPRESSION}."):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
