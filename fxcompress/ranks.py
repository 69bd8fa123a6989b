"""Ranks: collectives of the processes of one distributed training, many tensors at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MARK = "rank"
"""The name of the buffer that tells whether another rank's buffers were written over this one's."""


def rank_of(group: Any) -> int:
    """The place of this process in `group`, or in the default group for None; 0 where there is none."""
    return dist.get_rank(group) if many(group) else 0


def many(group: Any) -> bool:
    """Whether this process trains with others of `group`, or of the default group for None."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


@torch.no_grad()
def maximum(tensors: Iterable[Tensor], group: Any) -> None:
    """Make each tensor the largest of all ranks, element by element."""
    for alike in _alike(tensors):
        _reduce(alike, dist.ReduceOp.MAX, group)


@torch.no_grad()
def total(tensors: Iterable[Tensor], group: Any) -> None:
    """Make each tensor the sum over all ranks."""
    for alike in _alike(tensors):
        _reduce(alike, dist.ReduceOp.SUM, group)


@torch.no_grad()
def from_first(tensors: Iterable[Tensor], group: Any) -> None:
    """Make each tensor that of the first rank, bit for bit."""
    tensors = sorted(tensors, key=lambda t: str(t.device))
    for _, on_device in groupby(tensors, key=lambda t: t.device):
        alike = list(on_device)
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in alike]
        flat = torch.cat(raw)
        dist.broadcast(flat, group=group, group_src=0)
        for t, part in zip(alike, torch.split(flat, [len(r) for r in raw]), strict=True):
            t.copy_(part.clone().view(t.dtype).view(t.shape))  # a view as another type wants memory of its own


def _alike(tensors: Iterable[Tensor]) -> list[Sequence[Tensor]]:
    """The tensors of each device and type, in an order that all ranks have."""
    ordered = sorted(tensors, key=_kind)
    return [list(alike) for _, alike in groupby(ordered, key=_kind)]


def _kind(t: Tensor) -> tuple[str, str]:
    return str(t.device), str(t.dtype)


def _reduce(alike: Sequence[Tensor], operation: Any, group: Any) -> None:
    flat = torch.cat([t.reshape(-1) for t in alike])
    dist.all_reduce(flat, operation, group=group)
    for t, part in zip(alike, torch.split(flat, [t.numel() for t in alike]), strict=True):
        t.copy_(part.view(t.shape))
