"""Example inputs of a compressed net."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.calls import bind
from fxcompress.module import CompressedModule


def bind_example(net: CompressedModule, example_inputs: Any) -> dict[str, Any]:
    """Inputs by argument name, on the CPU where runtimes run; those that `compress` was given where there are none.

    Raises CaptureError if they do not fit.
    """
    inputs = dict(net.schedule.example_inputs) if example_inputs is None else bind(net, example_inputs)
    cpu: dict[str, Any] = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().cpu(), inputs)
    return cpu
