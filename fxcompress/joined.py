"""What the ranks of a distributed training saw and chose, as one: observations put together, the first rank's masks and
scales for all."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fxcompress.errors import ScheduleError
from fxcompress.graph import COMPRESSION, has_module
from fxcompress.observer import Observer
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.ranks import MARK, from_first, many, maximum, rank_of, total

_CHOSEN = ("mask", "origin", "scale", "zero_point", "offset")


@torch.no_grad()
def meet(net: nn.Module, what: str, group: Any) -> None:
    """Begin a training of several ranks: all do `what`, with the masks and scales that the first rank has."""
    agree(net, what, group)
    if has_module(net, COMPRESSION):
        home = net.get_submodule(COMPRESSION)
        share(home.modules(), group)
        # Whoever writes the first rank's buffers over those of others writes over this one too.
        device = next((b.device for b in home.buffers()), torch.device("cpu"))
        home.register_buffer(MARK, torch.tensor(rank_of(group), device=device), persistent=False)


def agree(net: nn.Module, what: str, group: Any, observed: bool = False) -> None:
    """Raise ScheduleError on all ranks if they are not about to do the same, or what they observed was written over."""
    home: Any = net.get_submodule(COMPRESSION) if has_module(net, COMPRESSION) else None
    mark = getattr(home, MARK, None)
    code = zlib.crc32(what.encode())
    device = next((t.device for t in net.buffers()), torch.device("cpu"))
    sent = torch.tensor([code, -code, 0], device=device)
    if observed and mark is not None:
        sent[2] = (mark != rank_of(group)).long()
    maximum([sent], group)
    most, least, written_over = sent.tolist()
    if most != -least:
        raise ScheduleError(
            f"the ranks do not train the same net: one is at '{what}', another is not; compress by one spec and load "
            "the same state on all of them, or, where a rank trains a net of its own, set net.schedule.group = "
            "torch.distributed.new_subgroups(group_size=1)[0]"
        )
    if written_over:
        raise ScheduleError(
            "DistributedDataParallel around a module that holds the net writes the first rank's buffers over what "
            "others have observed; wrap the net itself, or pass broadcast_buffers=False"
        )


@torch.no_grad()
def join(modules: Iterable[nn.Module], group: Any) -> None:
    """Make what pruners and quantizers observed what all ranks did: bounds, sums, and means of averages."""
    observers, pruners = _watching(modules)
    bounded = [o for o in observers if not o.averages]
    averages = [o for o in observers if o.averages]
    filled = [o for o in bounded if o.keeps_histogram]
    negated = [-o.low for o in bounded]
    reaches = [o.reach.clone() for o in filled]
    maximum([*negated, *(o.high for o in bounded), *reaches], group)
    for observer, low in zip(bounded, negated, strict=True):
        observer.low.copy_(-low)
    for observer, reach in zip(filled, reaches, strict=True):
        observer.widen(torch.log2(reach / observer.reach).round())
    _average(averages, group)
    watched = [p.sensitivity for p in pruners if not p.of_activation]
    total([*_sums(filled, pruners), *watched], group)
    for sensitivity in watched:
        sensitivity.div_(dist.get_world_size(group))


def share(modules: Iterable[nn.Module], group: Any) -> None:
    """Give all ranks the masks, scales and zero points of the first."""
    chosen = [t for m in modules if isinstance(m, (Pruner, Quantizer)) for t in _chosen(m)]
    if chosen:
        from_first(chosen, group)


def keep_sums_once(net: Any, group: Any) -> None:
    """After what was seen became equal on all ranks: let sums stay with the first from the next training forward on, so
    that they count once when they are added again."""
    if many(group) and rank_of(group) and _forget_sums not in net._forward_pre_hooks.values():
        net.register_forward_pre_hook(_forget_sums)


def _forget_sums(net: Any, args: Any) -> None:
    if not net.training:
        return
    for key in [key for key, hook in net._forward_pre_hooks.items() if hook is _forget_sums]:
        del net._forward_pre_hooks[key]
    observers, pruners = _watching(m for m in net.modules() if getattr(m, "observing", False))
    for sum_ in _sums([o for o in observers if o.keeps_histogram], pruners):
        sum_.zero_()


def _watching(modules: Iterable[nn.Module]) -> tuple[list[Observer], list[Pruner]]:
    """The observers of quantizers, and the pruners that see activations or gradients."""
    every = list(modules)
    observers = [m.observer for m in every if isinstance(m, Quantizer) and m.observer is not None]
    pruners = [m for m in every if isinstance(m, Pruner) and (m.of_activation or "sensitivity" in m._buffers)]
    return observers, pruners


def _sums(histograms: Iterable[Observer], pruners: Iterable[Pruner]) -> list[Tensor]:
    return [*(o.histogram for o in histograms), *(p.magnitude for p in pruners if p.of_activation)]


def _chosen(module: nn.Module) -> list[Tensor]:
    return [getattr(module, name) for name in _CHOSEN if hasattr(module, name)]


def _average(observers: list[Observer], group: Any) -> None:
    """Make moving averages the mean of those of all ranks that saw anything."""
    seen = [(o.low <= o.high).float() for o in observers]
    bounds = [(o.low, o.high) for o in observers]
    for (low, high), here in zip(bounds, seen, strict=True):
        low.copy_(torch.where(here > 0, low, 0.0))
        high.copy_(torch.where(here > 0, high, 0.0))
    total([*seen, *(bound for pair in bounds for bound in pair)], group)
    for (low, high), ranks in zip(bounds, seen, strict=True):
        low.copy_(torch.where(ranks > 0, low / ranks, torch.inf))
        high.copy_(torch.where(ranks > 0, high / ranks, -torch.inf))
