"""Example inputs of a compressed net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.calls import bind
from fxcompress.module import CompressedModule


def flat_tensors(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the inputs under the names that they have in a file: an argument's own, and those of a container
    with their places behind it, such as `features_0` or `features_p3`."""
    found = {}
    for name, value in inputs.items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor):
                found["_".join([name, *(_place(key) for key in path)])] = leaf
    return found


def _place(key: Any) -> str:
    return str(getattr(key, "idx", getattr(key, "key", getattr(key, "name", key))))


def bind_example(net: CompressedModule, example_inputs: Any) -> dict[str, Any]:
    """Inputs by argument name, on the CPU where runtimes run; those that `compress` was given where there are none.

    Raises CaptureError if they do not fit.
    """
    inputs = dict(net.schedule.example_inputs) if example_inputs is None else bind(net, example_inputs)
    cpu: dict[str, Any] = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().cpu(), inputs)
    return cpu
