#!/usr/bin/env python3
"""Latency of quantized torchvision families in ONNX Runtime, against their float selves and `quantize_static`.

For each family three files are made of one model with one set of random weights: float, ours (every weight and
activation at 8 bits, calibrated), and what ONNX Runtime's own `quantize_static` makes of the float file after its
own preprocessing (QDQ, per channel, int8 weights, uint8 activations). Each measurement is a fresh process in which
the three sessions take turns; a process gives the lower quartile of its runs, which other work on the machine moves
less than the middle, and the table the median over the processes. Ratios are taken inside a process. Prints a
Markdown table; files that are there already are used again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import torchvision
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import fxcompress as fxc

FAMILIES = [
    "resnet18", "resnext50_32x4d", "regnet_y_400mf", "vgg11_bn", "squeezenet1_1", "googlenet", "inception_v3",
    "densenet121", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0",
    "convnext_tiny", "vit_b_32", "swin_t",
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}
KINDS = ("float", "ours", "static")


def main() -> None:
    """Make the files of each family, measure them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each session in a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the files are kept, by default nowhere")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_measure(name, options.folder or Path(folder), options) for name in options.families]
    print(_table(rows))
    if options.out:
        machine = {"cpu": platform.machine(), "torch": torch.__version__, "onnxruntime": ort.__version__}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made.json"
    if not made.exists():
        made.write_text(json.dumps(_make(name, folder, options.size)))
    files = [str(folder / f"{kind}.onnx") for kind in KINDS]
    command = [sys.executable, str(Path(__file__).with_name("turns.py")), *files, "--size", str(options.size),
               "--runs", str(options.runs), "--threads", str(options.threads)]  # fmt: skip
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.processes)
    ]
    row = {
        "family": name,
        **json.loads(made.read_text()),
        **{f"{kind}_ms": 1e3 * statistics.median(r[i] for r in runs) for i, kind in enumerate(KINDS)},
        "to_static": statistics.median(r[1] / r[2] for r in runs),
        "to_float": statistics.median(r[1] / r[0] for r in runs),
        "static_to_float": statistics.median(r[2] / r[0] for r in runs),
    }
    print(_line(row), file=sys.stderr, flush=True)
    return row


def _make(name: str, folder: Path, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = _with_statistics(torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {})), size).eval()
    image = torch.randn(2, 3, size, size)
    files = [folder / f"{kind}.onnx" for kind in KINDS]
    batch = {0: torch.export.Dim("batch")}
    if not files[2].exists():
        torch.onnx.export(model, (image,), files[0], dynamo=True, verbose=False, external_data=False,
                          dynamic_shapes=(batch,))  # fmt: skip
        _quantize_static(files[0], files[2], size)
    net = fxc.compress(model, "Q8(w,f)@0", image, total_steps=1)
    found = fxc.export_onnx(net.eval(), files[1], image)
    print(found, file=sys.stderr)
    return {"left": dict(Counter(o.split()[0] for o in found.float_operators)), "verified": found.ok}


def _with_statistics(model: torch.nn.Module, size: int) -> torch.nn.Module:
    """The model after one batch for its batch norms, so that activations have the size they have in a trained net."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size))
    return model


class _Images(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime's tools have no types
    """Two random images."""

    def __init__(self, name: str, size: int) -> None:
        generator = np.random.default_rng(1)
        images = (generator.standard_normal((1, 3, size, size), dtype=np.float32) for _ in range(2))
        self.left: Iterator[dict[str, Any]] = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """The next image, None behind the last."""
        return next(self.left, None)


def _quantize_static(source: Path, target: Path, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared))
        name = ort.InferenceSession(str(prepared), providers=["CPUExecutionProvider"]).get_inputs()[0].name
        quantize_static(str(prepared), str(target), _Images(name, size), quant_format=QuantFormat.QDQ,
                        per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> str:
    head = ["family", "float ms", "ours ms", "`quantize_static` ms", "ours / static", "ours / float", "static / float",
            "left in float", "verified"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * 6 + "---|---|", *map(_line, rows)]
    ratios = [r["to_static"] for r in rows]
    lines.append(
        f"\nours / static: median {statistics.median(ratios):.3f}, largest {max(ratios):.3f}; "
        f"ours / float: largest {max(r['to_float'] for r in rows):.3f}"
    )
    return "\n".join(lines)


def _line(r: dict[str, Any]) -> str:
    left = ", ".join(f"{n} {op}" for op, n in r["left"].items()) or "none"
    figures = [f"{r[k]:.2f}" for k in ("float_ms", "ours_ms", "static_ms", "to_static", "to_float", "static_to_float")]
    return "| " + " | ".join([r["family"], *figures, left, "yes" if r["verified"] else "no"]) + " |"


if __name__ == "__main__":
    main()
