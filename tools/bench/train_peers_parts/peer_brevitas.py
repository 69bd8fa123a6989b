"""Brevitas: its FX flow with its default maps; batch norms stay and train, as with the others."""

from __future__ import annotations

import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import preprocess_for_quantize, quantize
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import nn

from train_peers_parts.training import Batch, Compressed, warmed

DOES = "weights and activations: int8, scales trained; not pruned"


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step when activations have learned scales instead of observers."""
    net = quantize(preprocess_for_quantize(model.train(), merge_bn=False))
    with torch.no_grad(), calibration_mode(net):
        net(batch.images)
    proxies = [m for m in net.modules() if isinstance(m, QuantProxyFromInjector)]
    return Compressed(warmed(net.train(), batch), sum(m.is_quant_enabled for m in proxies))
