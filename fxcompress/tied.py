"""Tensors under several names in a `state_dict`."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn


def copy_tied(net: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Give every further name of a tensor in `state` a copy, as a hook of `state_dict`.

    Trainers write safetensors files, which refuse tensors that share memory, and only models of their own kind may say
    which are tied. States of variables (`keep_vars=True`) stay as they are.
    """
    seen = set[int]()
    for name, tensor in chain(net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False)):
        value = state.get(f"{prefix}{name}")
        if id(tensor) in seen and value is not None and value is not tensor:
            state[f"{prefix}{name}"] = value.clone()
        seen.add(id(tensor))
