"""NNCF: `nncf.quantize` with its defaults (bias correction among them); fewer bits by its advanced parameters.

Its quantizers train their ranges when the net is fine-tuned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nncf
import torch
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from torch import nn

from accuracy_parts.data import Task
from accuracy_parts.training import Work, calibration_batches, fine_tune

os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
"""It compiles an extension when first used, which takes some minutes where processors are busy."""


def quantize(model: nn.Module, teacher: nn.Module, task: Task, work: Work, settings: Mapping[str, str]) -> Any:
    """The quantized net in evaluation mode."""
    batches = calibration_batches(task)
    advanced = None
    if work.bits != 8:
        advanced = AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(num_bits=work.bits),
            weights_quantization_params=QuantizationParameters(num_bits=work.bits),
        )
    net = nncf.quantize(model.eval(), nncf.Dataset(batches), subset_size=len(batches), advanced_parameters=advanced)
    if work.bits < 8:
        fine_tune(net, work.recipe.optimizer(net.parameters()), teacher, task, work)
    return net.eval()


def export(net: Any, file: Path, task: Task) -> str:
    """By torch's exporter, as NNCF's documents say."""
    example = task.float(task.calibration[:2])
    torch.onnx.export(
        nncf.strip(net, do_copy=True), (example,), file, dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "batch"}}, opset_version=17,
    )  # fmt: skip
    return "exported by torch"


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"nncf": nncf.__version__, "torch": torch.__version__}
