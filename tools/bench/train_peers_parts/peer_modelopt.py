"""ModelOpt: `mtq.quantize` with its default configuration of int8; its scales stay those of the calibration."""

from __future__ import annotations

import modelopt.torch.quantization as mtq
from torch import nn

from train_peers_parts.training import Batch, Compressed, warmed

DOES = "weights and inputs of layers: int8, fixed scales; not pruned"


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step of the calibrated net."""
    net = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda calibrated: calibrated(batch.images)).train()
    return Compressed(warmed(net, batch), sum(getattr(m, "is_enabled", False) is True for m in net.modules()))
