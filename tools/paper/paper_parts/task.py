"""What a task is: networks as anyone would write them, data, a training step and metrics. Nothing here compresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
"""A network, or its file in a runtime."""


@dataclass(frozen=True)
class Setting:
    """What the command line says: `budget` is one of the task's; without `root` data are made up; `device` is where
    nets train; `features` is a file with the feature network of FID."""

    budget: str
    root: Path | None = None
    device: str = "cpu"
    features: Path | None = None


@dataclass
class Parts:
    """What trains: networks to compress by name, networks that stay as they are, and optimizers.

    The first optimizer moves the schedules.
    """

    nets: dict[str, nn.Module]
    others: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""
        return {**self.nets, **self.others}


class Task(ABC):
    """One of the paper's tasks within a budget.

    `name` is the name of its times in `fxcompress.paper.PUBLISHED`; `dense` are patterns of the layers that are not
    pruned; `differs` says what is not as published.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    dense: ClassVar[tuple[str, ...]] = ()
    budgets: ClassVar[tuple[str, ...]] = ("smoke", "cpu", "full")
    batch: int = 1
    steps_per_epoch: int = 1
    epochs: int = 1
    differs: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, setting: Setting) -> None:
        """Load the data. Raises ValueError where something is missing."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a training."""
        return self.epochs * self.steps_per_epoch

    @abstractmethod
    def build(self) -> Parts:
        """New networks and their optimizers, random only through torch."""

    @abstractmethod
    def examples(self) -> dict[str, Any]:
        """Inputs for each network of `Parts.nets`, of the size that is trained on."""

    @abstractmethod
    def step(self, parts: Parts) -> None:
        """One step of every optimizer on the next batch, which is drawn by torch's generator."""

    @abstractmethod
    def published_rate(self, share: float) -> float:
        """The share of the learning rate at a share of training, as published."""

    @abstractmethod
    def evaluate(self, parts: Parts, runs: Mapping[str, Run]) -> dict[str, float]:
        """Metrics on the test data, that of `metric` first. `runs` compute in the place of networks of those names."""

    def exported(self) -> dict[str, Any]:
        """Inputs for each network that is deployed, of the size that is deployed."""
        return self.examples()

    def fits_files(self) -> bool:
        """Whether exported files take all of the test data."""
        return True

    def pictures(self, run: Run) -> list[Image.Image]:
        """Sample answers, for tasks whose answers are images."""
        return []


class Descent(Task):
    """A task of one optimizer that descends on one loss, so that its steps can be captured on a GPU."""

    def step(self, parts: Parts) -> None:
        """One step on the next batch."""
        [optimizer] = parts.optimizers.values()
        optimizer.zero_grad()
        self.loss(parts, *self.drawn()).backward()
        optimizer.step()

    @abstractmethod
    def drawn(self) -> tuple[Tensor, ...]:
        """The next batch, drawn by torch's generator, on the device."""

    @abstractmethod
    def loss(self, parts: Parts, *batch: Tensor) -> Tensor:
        """The loss of a batch as `drawn` gives it."""
