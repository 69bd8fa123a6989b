"""The batch and the training step, the same in every environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from train_peers_parts.models import CLASSES

BATCH, SIDE = 32, 32
WARM_UP = 8
"""Steps until what is made when first used, and ranges that settle, are there."""
Step = Callable[[], None]


@dataclass(frozen=True)
class Batch:
    """What every step learns from."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Compressed:
    """A step with everything on, and how many quantizers and pruners the net has: none would be a wrong measurement."""

    step: Step
    quantizers: int
    pruners: int = 0


def random_batch() -> Batch:
    """Noise, which costs what images cost."""
    torch.manual_seed(0)
    return Batch(torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, CLASSES, (BATCH,)))


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum for all that is trained."""
    return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, weight_decay=1e-4)


def step_of(net: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> Step:
    """A training step: zero, forward, backward, optimizer."""
    used = optimizer or optimizer_of(net)

    def step() -> None:
        used.zero_grad()
        F.cross_entropy(net(batch.images), batch.labels).backward()
        used.step()

    return step


def warmed(net: nn.Module, batch: Batch) -> Step:
    """A step after some: those that make state when first run get a new optimizer, which knows all parameters."""
    before = step_of(net, batch)
    for _ in range(WARM_UP):
        before()
    after = step_of(net, batch)
    after()
    return after


def count(net: nn.Module, *names: str) -> int:
    """Modules whose class, or a base of it, has one of these names."""
    return sum(any(base.__name__ in names for base in type(m).__mro__) for m in net.modules())
