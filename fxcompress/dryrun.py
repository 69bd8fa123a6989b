"""Run a net so that only observers notice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

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
            net(**inputs)


@contextmanager
def _untouched(net: CompressedModule) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    kept = {name: b.clone() for name, b in net.named_buffers() if not name.startswith(f"{COMPRESSION}.")}
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for name, buffer in kept.items():
            net.get_buffer(name).copy_(buffer)
        for module, mode in modes.items():
            module.training = mode
