#!/usr/bin/env python3
"""Latency of int8 models before and after their masked channels are gone, and of the float model, in ONNX Runtime.

Trains a few steps through a schedule that prunes half of the channels and quantizes, exports, shrinks, exports again,
and times float, masked and shrunk files in turn (turns.py), each round in a fresh process. Figures are medians over the
rounds; ratios are taken within a round. Random weights and images: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
import torchvision
from rich.console import Console
from rich.table import Table

import fxcompress as fxc

TURNS = Path(__file__).with_name("turns.py")


def main() -> None:
    """Run the benchmark for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--sparsity", type=float, default=0.5, help="share of channels that go")
    parser.add_argument("--multiple", type=int, default=8, help="channels left are a multiple of it")
    parser.add_argument("--rounds", type=int, default=5, help="processes")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each file in a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    rows = [_measure(model, options) for model in options.models]
    Console(width=160).print(_table(rows))
    if options.out:
        machine = {"cpu": platform.processor(), "torch": torch.__version__, "onnxruntime": ort.__version__}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    example = torch.randn(2, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{what}.onnx" for what in ("float", "masked", "shrunk")]
        torch.onnx.export(model.eval(), (example[:1],), files[0], dynamo=True, verbose=False, external_data=False)
        net = _trained(model.train(), example, options.sparsity)
        before = sum(p.numel() for p in net.parameters())
        verified = [fxc.export_onnx(net.eval(), files[1], example).ok]
        fxc.shrink(net, multiple=options.multiple)
        verified.append(fxc.export_onnx(net, files[2], example).ok)
        rounds = [_turns(files, options) for _ in range(options.rounds)]
        sizes = [f.stat().st_size for f in files]
    ratios = {k: statistics.median(a[i] / a[2] for a in rounds) for k, i in (("float", 0), ("masked", 1))}
    return {
        "model": name, "sparsity": options.sparsity,
        "parameters_left": sum(p.numel() for p in net.parameters()) / before,
        "ms": [1e3 * statistics.median(a[i] for a in rounds) for i in range(3)], "bytes": sizes,
        "float_over_shrunk": ratios["float"], "masked_over_shrunk": ratios["masked"], "verified": all(verified),
    }  # fmt: skip


def _trained(model: torch.nn.Module, example: torch.Tensor, sparsity: float) -> fxc.CompressedModule:
    """The model after a few steps that prune channels and quantize."""
    rules = [
        {"op": "prune", "target": "weight", "sparsity": sparsity, "pattern": "channel", "start": 2, "ramp": "one-shot"},
        {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 6},
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    net = fxc.compress(model, {"rules": rules}, example, total_steps=8, optimizer=optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        net(torch.randn_like(example)).square().mean().backward()
        optimizer.step()
    return net


def _turns(files: list[Path], options: argparse.Namespace) -> list[float]:
    command = [
        sys.executable,
        str(TURNS),
        *map(str, files),
        "--runs",
        str(options.runs),
        "--threads",
        str(options.threads),
    ]
    found: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="int8 with half of the channels, masked and shrunk, against float in ONNX Runtime")
    for column in ("model", "parameters left", "float ms", "masked ms", "shrunk ms", "float / shrunk",
                   "masked / shrunk", "MB", "verified"):  # fmt: skip
        table.add_column(column, justify="left" if column == "model" else "right")
    for r in rows:
        times, sizes = (f"{t:.2f}" for t in r["ms"]), " / ".join(f"{b / 1e6:.1f}" for b in r["bytes"])
        table.add_row(r["model"], f"{r['parameters_left']:.3f}", *times, f"{r['float_over_shrunk']:.2f}",
                      f"{r['masked_over_shrunk']:.2f}", sizes, str(r["verified"]))  # fmt: skip
    return table


if __name__ == "__main__":
    main()
