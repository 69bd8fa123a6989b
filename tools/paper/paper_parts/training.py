"""One arm trained with one seed, in pieces: what is done so far is on disk, and a later call goes on to the bit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import fxcompress as fxc
from fxcompress.compare import digest_of
from fxcompress.files import whole
from paper_parts.captured import CapturedSteps
from paper_parts.processes import any_of_all, average_gradients, rank, world
from paper_parts.task import Descent, Task

SAVE_EVERY = 300.0
"""Seconds between checkpoints."""


@dataclass
class Training:
    """An arm of a task in training. `rates` are the learning rates at events, by step."""

    task: Task
    spec: Path | None
    kind: str
    seed: int
    file: Path
    device: torch.device
    half: bool = False
    done: int = 0
    seconds: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.parts = self.task.build()
        self.digest = digest_of(nn.ModuleDict(self.parts.modules()))
        for module in self.parts.modules().values():
            module.to(self.device).train()
        if self.spec is not None:
            optimizer = next(iter(self.parts.optimizers.values()))
            examples = self.task.examples()
            for name, model in self.parts.nets.items():
                self.parts.nets[name] = fxc.compress(
                    model, self.spec, examples[name], total_steps=self.task.total_steps, optimizer=optimizer
                )
        self.schedulers = {
            name: torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
            for name, optimizer in self.parts.optimizers.items()
        }
        for optimizer in self.parts.optimizers.values():
            average_gradients(optimizer)
        self.captured = CapturedSteps(self.task, self.parts) if self._can_capture() else None
        torch.manual_seed(self.seed + 1000 * rank())
        if self.file.exists():
            self._load()

    def _rate(self, step: int) -> float:
        total = self.task.total_steps
        return fxc.held_rate(step, total) if self.kind == "matched" else self.task.published_rate(step / total)

    def until(self, deadline: float) -> bool:
        """Train a step or more, to the end or to `deadline` by `time.monotonic`. Returns whether that was the end."""
        saved, total = time.monotonic(), self.task.total_steps
        with tqdm(total=total, initial=self.done, desc=self.file.stem, disable=None) as bar:
            while self.done < total:
                self._step()
                bar.update()
                now = time.monotonic()
                is_late = any_of_all(now > deadline)
                if is_late or now - saved > SAVE_EVERY or self.done == total:
                    self.seconds += now - saved
                    self._save()
                    saved = now
                if is_late:
                    break
        for module in self.parts.modules().values():
            module.train(self.done < total)
        return self.done == total

    def _can_capture(self) -> bool:
        return self.device.type == "cuda" and isinstance(self.task, Descent) and world() == 1 and not self.half

    def _step(self) -> None:
        if self.captured is not None:
            self.captured.step()
        else:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                self.task.step(self.parts)
        for scheduler in self.schedulers.values():
            scheduler.step()
        self.done += 1

    def _save(self) -> None:
        for net in self.parts.nets.values():
            if isinstance(net, fxc.CompressedModule):
                steps = {event.step for event in net.schedule.events}
                self.rates |= {step: rate for step, rate in net.schedule.rates.items() if step in steps}
        state: dict[str, Any] = {"done": self.done, "seconds": self.seconds, "rates": self.rates}
        state["random"] = torch.get_rng_state()
        for kind in ("modules", "optimizers", "schedulers"):
            state[kind] = {name: part.state_dict() for name, part in self._parts(kind).items()}
        if rank() == 0:
            with whole(self.file) as file:
                torch.save(state, file)

    def _load(self) -> None:
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        for kind in ("modules", "optimizers", "schedulers"):
            for name, part in self._parts(kind).items():
                part.load_state_dict(state[kind][name])
        self.done, self.seconds, self.rates = state["done"], state["seconds"], state["rates"]
        if rank() == 0:
            torch.set_rng_state(state["random"])
        else:
            torch.manual_seed(self.seed + 1000 * rank() + self.done)

    def _parts(self, kind: str) -> dict[str, Any]:
        return {
            "modules": self.parts.modules(), "optimizers": self.parts.optimizers, "schedulers": self.schedulers,
        }[kind]  # fmt: skip
