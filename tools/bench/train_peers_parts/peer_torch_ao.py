"""torch.ao's FX graph mode: its qconfig for x86 with observers and fake quantizers on."""

from __future__ import annotations

from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from train_peers_parts.training import Batch, Compressed, count, warmed

DOES = "weights and activations: int8; not pruned"


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step of the prepared net."""
    net = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping("x86"), (batch.images,))
    return Compressed(warmed(net, batch), count(net, "FakeQuantizeBase"))
