"""ONNX Runtime's `quantize_static` on the float file: min-max, signed 8 bits, QDQ, its defaults but for per-channel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from accuracy_parts.data import Task
from accuracy_parts.training import Work, calibration_batches


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.left: Iterator[torch.Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        batch = next(self.left, None)
        return None if batch is None else {"x": batch.contiguous().numpy()}


def quantize(model: nn.Module, teacher: nn.Module, task: Task, work: Work, settings: Mapping[str, str]) -> Any:
    """The bytes of the quantized file."""
    if work.bits != 8:
        raise NotImplementedError("quantize_static trains nothing and has no 4-bit activations for convolutions")
    batches = calibration_batches(task)
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("float", "ready", "quantized"))
        torch.onnx.export(
            model, (batches[0],), plain, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
            opset_version=17,
        )  # fmt: skip
        quant_pre_process(plain, ready)
        quantize_static(ready, done, _Reader(batches), per_channel=True)
        return done.read_bytes()


def export(net: Any, file: Path, task: Task) -> str:
    """Write the file."""
    file.write_bytes(net)
    return "quantized as a file"


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
