"""Run a net so that only observers notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcompress.graph import COMPRESSION


@torch.no_grad()
def observe_only(net: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Call `net` in evaluation mode with its pruners and quantizers observing.

    The model's buffers, the random state and all modes are left as they were.
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    for name, module in net.named_modules():
        if name.startswith(f"{COMPRESSION}."):
            module.training = True
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        net(**inputs)
    for module, mode in modes.items():
        module.training = mode
