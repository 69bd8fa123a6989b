"""The demo's results as a table for people."""

from __future__ import annotations

import io
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 100


def render_results(results: dict[str, Any]) -> str:
    """Accuracy for each seed and their mean, then zeros, size, latency and agreement, then what the masks cost."""
    seeds = results["seeds"]
    table = Table(
        title=f"digits, {results['spec']}, mean of {len(seeds)} seeds"
        if len(seeds) > 1
        else f"digits, {results['spec']}"
    )
    table.add_column("")
    for column in ("float", "compressed, PyTorch", "compressed, ONNX Runtime"):
        table.add_column(column, justify="right")
    for seed in seeds:
        found = seed["accuracy"]
        table.add_row(
            f"test accuracy, seed {seed['seed']}",
            *(f"{found[k]:.2f} %" for k in ("float", "compressed", "onnxruntime")),
        )
    means = {k: _mean(seeds, "accuracy", k) for k in ("float", "compressed", "onnxruntime")}
    table.add_row(
        "test accuracy, mean", *(f"{value:.2f} %" for value in means.values()), style="bold", end_section=True
    )
    for kind, name in (("weight", "weights"), ("activation", "activations")):
        table.add_row(
            f"zeros in {name} (masked)",
            "",
            f"{_mean(seeds, 'zeros', kind):.1f} % ({_mean(seeds, 'masked', kind):.1f} %)",
            "",
        )
    _add_ratio(table, "file size", "KB", *(_mean(seeds, "bytes", k) / 1000 for k in ("float", "compressed")))
    _add_ratio(table, "latency, batch of 64", "ms", *(_mean(seeds, "milliseconds", k) for k in ("float", "compressed")))
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False)
    console.print(table)
    for line in _lines(results):
        console.print(line, markup=False)
    return out.getvalue().rstrip()


def _add_ratio(table: Table, name: str, unit: str, before: float, after: float) -> None:
    digits = 1 if unit == "KB" else 2
    table.add_row(name, f"{before:.{digits}f} {unit}", "", f"{after:.{digits}f} {unit} ({100 * after / before:.0f} %)")


def _lines(results: dict[str, Any]) -> list[str]:
    seeds = results["seeds"]
    found = [seed["agreement"] for seed in seeds]
    equal, tensors = sum(f["equal_tensors"] for f in found), sum(f["tensors"] for f in found)
    step, outputs = max(f["largest_step"] for f in found), 100 * mean(f["outputs_equal"] for f in found)
    last = max(f["outputs_largest"] for f in found)
    lines = [
        f"file against trained net: {equal} of {tensors} quantized tensors equal in every element, none more "
        f"than {_count(step, 'steps')} apart; end to end {outputs:.2f} % of the outputs equal, none more than "
        f"{_count(last, found[0]['outputs_unit'])} apart",
        "latency: ONNX Runtime on one thread, median of runs in which the two files take turns",
    ]
    if any(seed["masks"]["bytes"] for seed in seeds):
        size, share = _mean(seeds, "masks", "bytes") / 1000, 100 * _mean(seeds, "masks", "time_share")
        lines.append(
            f"masks on activations cost {size:.1f} KB of the file and {share:.0f} % of its run time: a general runtime "
            "multiplies by unstructured zeros, it does not skip them"
        )
    return [*lines, f"took {results['seconds']:.0f} s"]


def _mean(seeds: list[dict[str, Any]], group: str, key: str) -> float:
    return float(mean(seed[group][key] for seed in seeds))


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit.removesuffix('s') if number == 1 else unit}"
