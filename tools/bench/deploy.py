#!/usr/bin/env python3
"""Size and latency of compressed torchvision models in ONNX Runtime, against their float selves.

Trains a few steps through the whole schedule on random images, exports, verifies, and times float and compressed
sessions in turn. Latency is a median over interleaved runs; ratios are compressed / float. Prints a table and writes
JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
import torchvision
from rich.console import Console
from rich.table import Table

import fxcompress as fxc
from fxcompress.runtime import latencies


def main() -> None:
    """Run the benchmark for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--specs", nargs="+", default=["P0.5(w) -> Q8(w,f)", "P0.5(w,f) -> Q8(w,f)"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2, help="training batch")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each session")
    parser.add_argument("--threads", type=int, default=0, help="ONNX Runtime threads, 0: its own choice")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    rows = [_measure(model, spec, options) for model in options.models for spec in options.specs]
    Console(width=160).print(_table(rows))
    if options.out:
        machine = {"cpu": platform.processor(), "torch": torch.__version__, "onnxruntime": ort.__version__}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _measure(name: str, spec: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    example = torch.randn(options.batch, 3, options.size, options.size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    net = fxc.compress(model, spec, example, total_steps=options.steps, optimizer=optimizer)
    net.train()
    for _ in range(options.steps):
        logits = net(torch.randn_like(example))
        logits = logits[0] if isinstance(logits, tuple) else logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.randint(0, logits.shape[1], (len(logits),))).backward()
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "float.onnx", Path(folder) / "compressed.onnx"]
        torch.onnx.export(model.eval(), (example[:1],), files[0], dynamo=True, verbose=False, external_data=False)
        found = fxc.export_onnx(net, files[1])
        seconds = latencies(files, {"x": example[:1].numpy()}, options.runs, options.threads)
        sizes = [f.stat().st_size for f in files]
    print(found)
    return {
        "model": name, "spec": spec, "float_mb": sizes[0] / 1e6, "file_ratio": sizes[1] / sizes[0],
        "float_ms": 1e3 * seconds[0], "ms": 1e3 * seconds[1], "latency_ratio": seconds[1] / seconds[0],
        "float_operators": list(found.float_operators), "integer_operators": dict(found.integer_operators),
        "verified": found.ok, "outputs_equal": [o.equal for o in found.outputs],
        "mask_mb": found.mask_bytes / 1e6, "mask_time_share": found.mask_time_share,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="compressed against float in ONNX Runtime")
    for column in ("model", "spec", "float MB", "file ratio", "float ms", "ms", "latency ratio", "left in float",
                   "verified", "masks MB", "masks time"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("model", "spec") else "right")
    for r in rows:
        table.add_row(r["model"], r["spec"], f"{r['float_mb']:.2f}", f"{r['file_ratio']:.3f}", f"{r['float_ms']:.2f}",
                      f"{r['ms']:.2f}", f"{r['latency_ratio']:.3f}", str(len(r["float_operators"])), str(r["verified"]),
                      f"{r['mask_mb']:.2f}", f"{100 * r['mask_time_share']:.0f} %")  # fmt: skip
    return table


if __name__ == "__main__":
    main()
