"""The demo's training loop: one for the float and for the compressed net, killed and resumed without a trace."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from fxcompress.demo.data import DemoError, Digits

LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Pace:
    """How long to train and how often to save."""

    epochs: int
    batch_size: int
    checkpoint_every: int


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of both nets."""
    return torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)


@dataclass
class Training:
    """One net in training, with its checkpoint and its losses in `folder`."""

    name: str
    net: nn.Module
    optimizer: torch.optim.Optimizer
    data: Digits
    pace: Pace
    folder: Path
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps_an_epoch = self.data.steps(self.pace.batch_size)
        self.total_steps = self.steps_an_epoch * self.pace.epochs
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.total_steps)

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return len(self.losses)

    @property
    def checkpoint(self) -> Path:
        """Where the state is saved."""
        return self.folder / f"{self.name}.pt"

    def fit(self) -> None:
        """Train to the end, from the checkpoint if there is one."""
        if self.checkpoint.exists():
            self._resume()
        self.net.train()
        with _Progress(self) as progress:
            for epoch in range(self.step // self.steps_an_epoch, self.pace.epochs):
                self._train_epoch(epoch, progress)

    def _train_epoch(self, epoch: int, progress: _Progress) -> None:
        done = self.step % self.steps_an_epoch
        for images, classes in islice(self.data.epoch(epoch, self.pace.batch_size), done, None):
            self._train_on(images, classes)
            if self.step % self.pace.checkpoint_every == 0 or self.step % self.steps_an_epoch == 0:
                self._save()
            progress.advance()
        progress.end_epoch(epoch)

    def _train_on(self, images: torch.Tensor, classes: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.net(images), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        self.losses.append(loss.item())

    def _save(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "losses": self.losses,
        }
        write_whole(self.checkpoint, lambda path: torch.save(state, path))
        self._write_losses()

    def _write_losses(self) -> None:
        lines = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(self.losses, 1))
        write_whole(self.folder / f"{self.name}.losses.jsonl", lambda path: path.write_text(lines))

    def _resume(self) -> None:
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
            self.net.load_state_dict(state["net"], strict=True)
        except Exception as error:
            raise DemoError(
                f"cannot resume from '{self.checkpoint}': {_first_line(error)}; delete it, or name another --out"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        self.losses = state["losses"]
        self._write_losses()  # the kill may have come between the two files


class _Progress:
    """A bar on a terminal, a line an epoch elsewhere; on standard error."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.label = f"{training.folder.name} {training.name}"
        self.bar = tqdm(
            total=training.total_steps,
            initial=training.step,
            desc=f"{self.label:16}",
            unit="step",
            disable=not sys.stderr.isatty(),
        )
        if training.step:
            self.bar.write(
                f"{self.label}: goes on after step {training.step} of {training.total_steps}", file=sys.stderr
            )

    def advance(self) -> None:
        """One step more."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{self.training.losses[-1]:.4f}", refresh=False)

    def end_epoch(self, epoch: int) -> None:
        """Say the epoch's mean loss where there is no bar."""
        if self.bar.disable:
            losses = self.training.losses[-self.training.steps_an_epoch :]
            mean = sum(losses) / len(losses)
            print(
                f"{self.label}: epoch {epoch + 1}/{self.training.pace.epochs}, loss {mean:.4f}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there: a reader never sees a part."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
