"""fxcompress: one schedule, then the dead channels go, then ONNX Runtime."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import fxcompress as fxc
from channels_parts.training import PRUNED, QUANTIZED, Training


def spec(sparsity: float) -> dict[str, Any]:
    """Half of the channels inside of every block, then 8 bits."""
    start, end, eight = (f"{100 * share:g}%" for share in (0.02, PRUNED, QUANTIZED))
    inner = {"name": "layer*.conv1"}
    return {
        "rules": [
            {"op": "prune", "target": "weight", "sparsity": sparsity, "pattern": "channel", "start": start, "end": end,
             "match": inner},
            {"op": "quantize", "target": "weight", "bits": 8, "start": eight, "range": "mse"},
            {"op": "quantize", "target": "activation", "bits": 8, "start": eight, "range": "mse"},
        ]
    }  # fmt: skip


def run(training: Training) -> dict[str, Any]:
    """Train through the schedule, shrink after pruning, export and test in ONNX Runtime."""
    training.learn_from_float()
    model, x = training.model, training.task.float(training.task.train[0][:4])
    whole = sum(p.numel() for p in model.parameters())
    optimizer = training.optimizer(model.parameters())
    net = fxc.compress(model, spec(0.5), x, total_steps=training.steps, optimizer=optimizer)
    before = sum(r.macs for r in fxc.report(net).rows)
    gone, eight = (int(share * training.steps) + 1 for share in (PRUNED, QUANTIZED))
    training.run(net, optimizer, 0, gone)
    fxc.shrink(net, optimizer)
    training.run(net, optimizer, gone, eight)
    in_float = training.accuracy(copy.deepcopy(net))
    training.run(net, optimizer, eight, training.steps)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        found = fxc.export_onnx(net, file, x)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        accuracy = training.accuracy(lambda t: torch.from_numpy(session.run(None, {name: t.contiguous().numpy()})[0]))
    macs = sum(r.macs for r in fxc.report(net).rows)
    return {"macs": macs / before, "parameters": sum(p.numel() for p in net.parameters()) / whole,
            "float_accuracy": in_float, "accuracy": accuracy, "verified": found.ok,
            "accuracy_torch": training.accuracy(net)}  # fmt: skip
