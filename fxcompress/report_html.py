"""A report of a net as one HTML page: sizes, timeline, tensors with their values on the grid, verification, graph."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from fxcompress.errors import ScheduleError
from fxcompress.files import whole, writable
from fxcompress.graph import COMPRESSION, module_of, modules_of_type
from fxcompress.html_page import SORT, number, page, text
from fxcompress.module import CompressedModule
from fxcompress.picture import drawn
from fxcompress.plots import Bar, chart
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.render import line_of
from fxcompress.report import Report, Row, report_of
from fxcompress.value_histograms import ValueHistogram, value_histograms
from fxcompress.verify_html import details
from fxcompress.verify_text import summary

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from fxcompress.comparison import Verification

_FILTER = """
for (const field of document.querySelectorAll("input[type=search]")) field.addEventListener("input", () => {
  const wanted = field.value.toLowerCase();
  for (const line of field.parentNode.querySelectorAll("li"))
    line.hidden = !line.textContent.toLowerCase().includes(wanted);
});
"""


def write_report(
    net: CompressedModule,
    path: str | os.PathLike[str],
    *,
    inputs: Any = None,
    verification: Verification | None = None,
) -> None:
    """Write a page that opens from disk: summary, timeline, tensors with histograms, verification, graph.

    Args:
        net: what `compress` returned; it is left as it is.
        path: the page's file, written whole or not at all.
        inputs: one batch as for `compress`, whose activations the histograms show; by default the example inputs.
        verification: what `verify` or `export_onnx` returned, to stand in the page.

    Raises ScheduleError if `net` is no compressed net, ExportError if `path` cannot be written.
    """
    if not isinstance(net, CompressedModule):
        raise ScheduleError(f"expected what fxcompress.compress returns, got {type(net).__name__}; compress it first")
    target = writable(path)
    made = html_of_report(net, inputs, verification)
    with whole(target) as file:
        file.write_text(made, encoding="utf-8")


def html_of_report(net: CompressedModule, inputs: Any = None, verification: Verification | None = None) -> str:
    """The page."""
    found = report_of(net)
    parts = [
        f"<p>{escape(str(net.spec))}</p><ul>{''.join(f'<li>{escape(line)}</li>' for line in found.summary())}</ul>",
        _timeline(net),
        _tensors(net, found, value_histograms(net, inputs)),
        _verification(verification),
        "<h2>Graph</h2>" + "".join(_graph(net, gm, k) for k, gm in enumerate(net.views())),
    ]
    return page(type(net).__name__, "\n".join(parts), SORT + _FILTER)


def _timeline(net: CompressedModule) -> str:
    schedule = net.schedule
    picture = ""
    if schedule.total_steps:
        svg = drawn(schedule.tracks(), schedule.total_steps, schedule.rates).decode()
        picture = svg[svg.index("<svg") :]
    events = f"<details><summary>events</summary><pre>{escape(schedule.timeline())}</pre></details>"
    return f"<h2>Timeline</h2>{picture}{events}"


def _tensors(net: CompressedModule, found: Report, values: Mapping[str, ValueHistogram]) -> str:
    heads = ("#", "tensor", "kind", "bits", "zeros", "bytes", "MACs", "BOPs", "grid", "clipped", "values", "left alone")
    rows = [_row(net, order, row, values) for order, row in enumerate(found.rows, 1)]
    return (
        "<h2>Tensors</h2><p>Click a heading to sort. <i>values</i> is how many values lie where, on a logarithmic "
        "scale from a millionth to all: grey on the grid, orange outside of the widest one.</p><table><thead><tr>"
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _row(net: CompressedModule, order: int, row: Row, values: Mapping[str, ValueHistogram]) -> str:
    seen = values.get(f"{COMPRESSION}.{row.name}_quantizer")
    clipped = seen.clipped / max(seen.total, 1) if seen else 0.0
    cells = (
        number(order), text(row.name), text(row.kind), number(row.bits),
        number(row.sparsity, f"{100 * row.sparsity:.1f} %"),
        number(row.bytes, f"{row.bytes:,.0f}"), number(row.macs, f"{row.macs:,}" if row.macs else "–"),
        number(row.bops, f"{row.bops:.3g}" if row.bops else "–"),
        text(f"{seen.grid_low:.4g} to {seen.grid_high:.4g}" if seen else ""),
        number(clipped, f"{100 * clipped:.2g} %") if seen else text(""),
        f'<td data-value="">{_plot(seen) if seen else ""}</td>', text(row.reason),
    )  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>"


def _plot(seen: ValueHistogram) -> str:
    width = (seen.high - seen.low) / len(seen.counts)
    bars = []
    for place, count in enumerate(seen.counts):
        start = seen.low + place * width
        inside = start + width > seen.grid_low and start < seen.grid_high
        label = f"{start:.3g} to {start + width:.3g}: {count} of {seen.total}"
        bars.append(Bar(count / max(seen.total, 1), label, "equal" if inside else "off"))
    return chart(bars, 220, 40, (f"{seen.low:.3g}", f"{seen.high:.3g}"))


def _verification(found: Verification | None) -> str:
    if found is None:
        return "<h2>Verification</h2><p>None was given to this report.</p>"
    first, *rest = summary(found)
    lines = "".join(f"<li>{escape(line)}</li>" for line in (*rest, *found.notes))
    verdict = f'<p class="verdict {"ok" if found.ok else "fault"}">{escape(first)}</p>'
    return (
        f"<h2>Verification</h2>{verdict}<ul>{lines}</ul><details><summary>tensors</summary>{details(found)}</details>"
    )


def _graph(net: CompressedModule, gm: GraphModule, number_of_graph: int) -> str:
    """Every node as a line, whose inputs are links to theirs."""
    lines = []
    for node in gm.graph.nodes:
        shown = escape(line_of(gm, node))
        linked = re.sub(r"%(\w+)", lambda m: f'<a href="#g{number_of_graph}-{m[1]}">%{m[1]}</a>', shown)
        module = module_of(gm, node)
        kind = "mask" if isinstance(module, Pruner) else "grid" if isinstance(module, Quantizer) else ""
        lines.append(f'<li id="g{number_of_graph}-{node.name}" class="{kind}">{linked}</li>')
    off = sum(not m.is_enabled for _, m in modules_of_type(net, Quantizer))
    said = f"{len(lines)} nodes" + (f", {off} quantizers off" if off else "")
    return (
        f'<details open><summary>graph {number_of_graph + 1}: {said}</summary><input type="search" '
        f'placeholder="show nodes with …"><ol class="graph">{"".join(lines)}</ol></details>'
    )
