"""NNCF: `nncf.quantize` with its defaults (bias correction among them); fewer bits by its advanced parameters.

Its quantizers train their ranges when the net is fine-tuned. No width can be given for one layer, so at fewer bits the
first and last layer and the pooling stay in float rather than at 8 bits.
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
from accuracy_parts.models import EDGES
from accuracy_parts.training import Work, calibration_batches, fine_tune

os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
"""It compiles an extension when first used, which takes some minutes where processors are busy."""


def quantize(model: nn.Module, teacher: nn.Module, task: Task, work: Work, settings: Mapping[str, str]) -> Any:
    """The quantized net in evaluation mode."""
    batches = calibration_batches(task)
    advanced, left, device = None, None, nncf.TargetDevice.ANY
    if work.bits < 8:
        bits = QuantizationParameters(num_bits=work.bits)
        advanced = AdvancedQuantizationParameters(
            activations_quantization_params=bits, weights_quantization_params=bits
        )
        device = nncf.TargetDevice.NPU  # the only one that it has 4-bit activations for
        left = nncf.IgnoredScope(patterns=[f"^{edge}/.*" for edge in (*EDGES[work.model], "pool")])
    net = nncf.quantize(
        model.eval(),
        nncf.Dataset(batches),
        target_device=device,
        subset_size=len(batches),
        ignored_scope=left,
        advanced_parameters=advanced,
    )
    if work.bits < 8:
        fine_tune(net, work.recipe.optimizer(net.parameters()), teacher, task, work)
    return net.eval()


def export(net: Any, file: Path, task: Task) -> str:
    """By torch's exporter, as NNCF's documents say."""
    example = task.float(task.calibration[:2])
    torch.onnx.export(
        nncf.strip(net, do_copy=True, example_input=example), (example,), file, dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "batch"}}, opset_version=17,
    )  # fmt: skip
    return "exported by torch"


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"nncf": nncf.__version__, "torch": torch.__version__}
