"""fxcompress: `compress`, `calibrate`, a fine-tune of weights and scales for less than 8 bits, `export_onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import fxcompress as fxc
from accuracy_parts.data import Task
from accuracy_parts.training import Work, calibration_batches, fine_tune


def spec_of(work: Work, settings: Mapping[str, str]) -> dict[str, Any]:
    """Defaults but for what `settings` says of `weight_range`, `activation_range` and `scale`."""
    rules: list[dict[str, Any]] = []
    for target in ("weight", "activation"):
        rule = {"op": "quantize", "target": target, "bits": work.bits, "first_last_bits": work.edge_bits}
        chosen = {"range": settings.get(f"{target}_range"), "scale": settings.get("scale")}
        rules.append({**rule, **{key: value for key, value in chosen.items() if value}})
    return {"rules": rules}


def quantize(model: nn.Module, teacher: nn.Module, task: Task, work: Work, settings: Mapping[str, str]) -> Any:
    """The quantized net in evaluation mode."""
    batches = calibration_batches(task)
    optimizer = work.recipe.optimizer(model.parameters())
    net = fxc.compress(model, spec_of(work, settings), batches[0][:2], total_steps=1, optimizer=optimizer)
    fxc.calibrate(net, batches, correct_bias=bool(settings.get("correct_bias")))
    net.eval()
    if work.bits < 8:
        fine_tune(net, optimizer, teacher, task, work)
    return net


def export(net: Any, file: Path, task: Task) -> str:
    """Write the file; says whether the runtime computes what the net computes."""
    found = fxc.export_onnx(net, file, task.float(task.calibration[:2]))
    return f"verified: {'ok' if found.ok else 'NOT ok'}, {len(found.tensors)} quantized tensors"


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"fxcompress": "this tree", "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
