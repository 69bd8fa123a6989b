"""What a search minimizes besides its metric: what a trained net costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from fxcompress.export import export_onnx
from fxcompress.module import CompressedModule
from fxcompress.report import rows_of
from fxcompress.runtime import latencies

RUNS = 30


def _bytes(net: CompressedModule) -> float:
    """Of all weights without their zeros, with a bit map of what is zero."""
    return sum(row.sparse_bytes for row in rows_of(net) if row.kind == "weight")


def _bops(net: CompressedModule) -> float:
    return sum(row.bops for row in rows_of(net))


def _latency(net: CompressedModule) -> float:
    """Milliseconds of the exported file in ONNX Runtime on the example inputs, one thread, the median of RUNS."""
    inputs = net.schedule.example_inputs
    feed = {name: value.cpu().numpy() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        export_onnx(net, file)
        return 1e3 * latencies([file], feed, RUNS, threads=1)[0]


COSTS: dict[str, Callable[[CompressedModule], float]] = {"bytes": _bytes, "bops": _bops, "latency": _latency}
"""By name."""
