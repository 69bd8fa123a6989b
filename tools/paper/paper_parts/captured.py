"""Training steps as CUDA graphs: small networks on a GPU wait for Python, and a replay does not.

Forward and backward are captured once and replayed on each batch. A step is taken as written, and captured anew after
it, when pruners or quantizers have changed what they do, and for as long as one observes; masks and scales that change
do so in memory that the graph reads. The optimizer steps outside of the graph and moves the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxcompress.graph import modules_of_type
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from paper_parts.task import Descent, Parts


class CapturedSteps:
    """The steps of a task that has a loss for one optimizer, on a GPU."""

    def __init__(self, task: Descent, parts: Parts) -> None:
        self.task, self.parts = task, parts
        [self.optimizer] = parts.optimizers.values()
        self.acting = [m for net in parts.nets.values() for _, m in modules_of_type(net, Pruner, Quantizer)]
        self.state: Any = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Sequence[Tensor] = ()

    def step(self) -> None:
        """One step on a new batch."""
        batch, state = self.task.drawn(), [m.flags for m in self.acting]
        if state != self.state or any(m.observing for m in self.acting):
            self.state, self.graph = state, None
            self.optimizer.zero_grad()
            self.task.loss(self.parts, *batch).backward()
        else:
            if self.graph is None:
                self._capture(batch)
            for memory, new in zip(self.batch, batch, strict=True):
                memory.copy_(new)
            self.graph.replay()  # type: ignore[union-attr]
        self.optimizer.step()

    def _capture(self, batch: Sequence[Tensor]) -> None:
        self.batch, self.graph = [t.clone() for t in batch], torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()  # gradients are memory of the graph
        with torch.cuda.graph(self.graph):
            self.task.loss(self.parts, *self.batch).backward()
