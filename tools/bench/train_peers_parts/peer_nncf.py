"""NNCF: `nncf.quantize` with its defaults, whose fake quantizers train their ranges when the net is fine-tuned."""

from __future__ import annotations

import os

import nncf
from torch import nn

from train_peers_parts.training import Batch, Compressed, count, warmed

DOES = "weights and activations: int8, ranges trained; not pruned"
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
"""It compiles an extension when first used, which takes some minutes where processors are busy."""


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step of the calibrated net."""
    net = nncf.quantize(model.eval(), nncf.Dataset([batch.images]), subset_size=1).train()
    return Compressed(warmed(net, batch), count(net, "BaseQuantizer"))
