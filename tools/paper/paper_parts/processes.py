"""Several processes on one training, started by torchrun: each on batches of its own, with gradients averaged."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def join(device: str) -> str:
    """Join the processes that torchrun started, if it did; the device of this one."""
    if "LOCAL_RANK" not in os.environ:
        return device
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    return f"{device}:{os.environ['LOCAL_RANK']}" if device == "cuda" else device


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def any_of_all(is_so: bool) -> bool:
    """Whether it is so in any process; all must ask."""
    if world() == 1:
        return is_so
    found = torch.tensor(float(is_so), device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(found)
    return bool(found > 0)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Before each of its steps an optimizer gets the mean gradients of all processes.

    By hand, since networks that train in turns, and are called several times a step, are not what DDP is for.
    """
    if world() > 1:
        optimizer.register_step_pre_hook(_average)


def _average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = _flatten_dense_tensors(gradients)
    distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat / world(), gradients), strict=True):
        gradient.copy_(mean)
