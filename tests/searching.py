"""A search in a process of its own, for tests that run several and kill one: STORAGE TRIALS SECONDS-A-TRIAL."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import nn

import fxcompress as fxc

STEPS = 40
SPACE = fxc.Space("P0.5(w,f) -> Q8(w,f)", sparsity=(0.2, 0.8), bits=(4, 8))
X = torch.zeros(2, 4)


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


def evaluate(net: Any) -> float:
    """A number that the timeline alone decides."""
    return sum(event.step * (event.rule + 1) + event.value for event in net.schedule.events) % 97.0


def run(storage: str, trials: int, pause: float = 0.0, **options: Any) -> Any:
    def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(STEPS):
            optimizer.step()
            time.sleep(pause / STEPS)

    options = {"sampler": "random", "beat": 0.5, **options}
    return fxc.search(
        SPACE, build, train, evaluate, example_inputs=X, total_steps=STEPS, trials=trials, storage=storage, **options
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
