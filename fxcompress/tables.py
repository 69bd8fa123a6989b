"""Verifications and reports as tables for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fxcompress.report import Report
    from fxcompress.verify import Verification

WIDTH = 120


def render_verification(found: Verification) -> str:
    """Tensors that differ, then outputs, operators and costs."""
    table = Table(title=f"{found.path}: {found.file_bytes / 1e6:.3f} MB against the frozen graph, ONNX Runtime")
    for column in (
        "quantized tensor",
        "elements",
        "equal off",
        "on",
        "largest off",
        "on",
        "ties off",
        "on",
        "other off",
        "on",
    ):
        table.add_column(column, justify="left" if column.startswith("quantized") else "right")
    for t in found.tensors:
        if min(t.equal) < 1:
            table.add_row(t.name, str(t.elements), *(f"{100 * e:.3f} %" for e in t.equal), *map(str, t.largest),
                          *map(str, t.ties), *map(str, t.unexplained))  # fmt: skip
    same = sum(min(t.equal) == 1 for t in found.tensors)
    lines = [f"{same} of {len(found.tensors)} quantized tensors equal in every element, optimizations off and on"]
    for o in found.outputs:
        lines.append(
            f"output '{o.name}' end to end: {100 * o.equal[0]:.2f} % equal, largest {o.largest[0]:g} {o.unit} (off); "
            f"{100 * o.equal[1]:.2f} %, {o.largest[1]:g} {o.unit} (on)"
        )
    counts = ", ".join(f"{n} {name}" for name, n in found.integer_operators.items())
    lines.append(f"integer operators: {counts or 'none'}; left in float: {', '.join(found.float_operators) or 'none'}")
    if found.mask_bytes:
        lines.append(
            f"masks on activations cost {found.mask_bytes / 1e6:.3f} MB of the file and "
            f"{100 * found.mask_time_share:.0f} % of the run time: a general runtime multiplies by unstructured zeros, "
            "it does not skip them"
        )
    return _print(table if len(table.rows) else None, [*lines, *found.notes])


def render_report(report: Report) -> str:
    """One line a weight and an activation, then totals."""
    table = Table(title="weights and activations")
    for column in ("name", "kind", "bits", "zeros", "bytes", "MACs", "BOPs", "rewritten", "reason"):
        table.add_column(column, justify="right" if column in ("bits", "zeros", "bytes", "MACs", "BOPs") else "left")
    for r in report.rows:
        table.add_row(r.name, r.kind, str(r.bits), f"{100 * r.sparsity:.1f} %", f"{r.bytes:,.0f}", f"{r.macs:,}" if
        r.macs else "",
                      f"{r.bops:,.0f}" if r.bops else "", "yes" if r.rewritten else "no", r.reason)  # fmt: skip
    return _print(table, report.summary())


def _print(table: Table | None, lines: list[str]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False, markup=False)
    if table is not None:
        console.print(table)
    for line in lines:
        console.print(line)
    return out.getvalue().rstrip()
