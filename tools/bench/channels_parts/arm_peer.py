"""Torch-Pruning by group magnitude in four steps, then torch.ao's quantization-aware training."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from channels_parts.training import PRUNED, QUANTIZED, Training, macs_of

STEPS = 4
ENGINE = "onednn"


def run(training: Training) -> dict[str, Any]:
    """Prune while training, quantize for the last steps, convert and test."""
    warnings.filterwarnings("ignore")
    training.learn_from_float()
    model, x = training.model, training.task.float(training.task.train[0][:4])
    whole, macs = sum(p.numel() for p in model.parameters()), macs_of(model, x)
    inner = {m: 0.5 for name, m in model.named_modules() if name.startswith("layer") and name.endswith("conv1")}
    pruner = tp.pruner.MagnitudePruner(
        model, x, importance=tp.importance.GroupMagnitudeImportance(p=2), iterative_steps=STEPS, pruning_ratio=0.0,
        pruning_ratio_dict=inner, ignored_layers=[model.linear],
    )  # fmt: skip
    at = [round(training.steps * (0.02 + (PRUNED - 0.02) * k / (STEPS - 1))) for k in range(STEPS)]
    done = 0
    for step in at:
        training.run(model, training.optimizer(model.parameters()), done, step)
        pruner.step()
        done = step
    eight = int(QUANTIZED * training.steps)
    training.run(model, training.optimizer(model.parameters()), done, eight)
    left, in_float = macs_of(model, x), training.accuracy(copy.deepcopy(model))
    parameters = sum(p.numel() for p in model.parameters())
    torch.backends.quantized.engine = ENGINE
    net: nn.Module = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping(ENGINE), (x,))
    training.run(net, training.optimizer(net.parameters()), eight, training.steps)
    return {"macs": left / macs, "parameters": parameters / whole, "float_accuracy": in_float,
            "accuracy": training.accuracy(convert_fx(net))}  # fmt: skip
