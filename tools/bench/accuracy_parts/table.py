"""Measured cells as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEAD = (
    "model", "bits", "method", "accuracy", "in ONNX Runtime", "agreement", "in ONNX Runtime", "divergence",
    "logit error", "settings",
)  # fmt: skip


def markdown(cells: Iterable[Mapping[str, Any]]) -> str:
    """One row a cell; means where a cell was measured with several seeds, and why where it was not measured."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        key = cell["model"], cell["bits"], cell["edge_bits"], cell["method"], _settings(cell)
        groups.setdefault(key, []).append(cell)
    rows = [HEAD, ("---",) * len(HEAD), *(_row(key, group) for key, group in groups.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(key: tuple[Any, ...], cells: list[Mapping[str, Any]]) -> tuple[str, ...]:
    model, bits, edge_bits, method, settings = key
    edges = f", edges {edge_bits}" if edge_bits != bits else ""
    start = (model, f"W{bits}A{bits}{edges}", method)
    if "skipped" in cells[0]:
        return (*start, *("–",) * 6, f"not measured: {cells[0]['skipped']}")
    best = "torch" if "torch" in cells[0] else "runtime"
    return (
        *start,
        _mean(cells, "torch", "accuracy", "%"), _mean(cells, "runtime", "accuracy", "%"),
        _mean(cells, "torch", "agreement", "%"), _mean(cells, "runtime", "agreement", "%"),
        _mean(cells, best, "divergence"), _mean(cells, best, "error"), settings or "defaults",
    )  # fmt: skip


def _mean(cells: list[Mapping[str, Any]], where: str, what: str, unit: str = "") -> str:
    if not all(where in cell for cell in cells):
        return "–"
    value = sum(cell[where][what] for cell in cells) / len(cells)
    return f"{value:.2f} {unit}" if unit else f"{value:.4f}"


def _settings(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in cell.get("settings", {}).items())
