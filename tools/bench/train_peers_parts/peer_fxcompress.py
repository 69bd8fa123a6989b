"""Ours: int8 and masks of 50 % on weights and activations, after the last event of the schedule."""

from __future__ import annotations

from torch import nn

import fxcompress as fxc
from train_peers_parts.training import Batch, Compressed, count, optimizer_of, step_of

DOES = "weights and activations: int8 and 50 % of single elements"
SPEC = "P0.5(w,f) -> Q8(w,f)"
STEPS = 20


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step when nothing is pending any more."""
    optimizer = optimizer_of(model)
    net = fxc.compress(model, SPEC, batch.images, total_steps=STEPS, optimizer=optimizer)
    step = step_of(net, batch, optimizer)
    while net.schedule.pending():
        step()
    return Compressed(step, count(net, "Quantizer"), count(net, "Pruner"))
