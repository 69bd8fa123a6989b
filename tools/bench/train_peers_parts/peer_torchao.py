"""torchao's PT2E: the exported graph prepared by the quantizer for x86 and Inductor; run as it is, uncompiled."""

from __future__ import annotations

import torch
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from train_peers_parts.training import Batch, Compressed, count, warmed

DOES = "weights and activations: int8; not pruned"


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step of the prepared graph."""
    graph = torch.export.export(model.train(), (batch.images,), strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    net = move_exported_model_to_train(prepare_qat_pt2e(graph, quantizer))
    return Compressed(warmed(net, batch), count(net, "FakeQuantizeBase"))
