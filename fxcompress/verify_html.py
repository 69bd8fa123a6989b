"""A verification as one HTML page: everything in it, nothing to load."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.files import whole, writable
from fxcompress.html_page import number, page, text
from fxcompress.plots import Bar, chart, histogram
from fxcompress.verify_text import causes_of, share, summary

if TYPE_CHECKING:
    from fxcompress.comparison import TensorInRuntime, Verification

PLOT_WIDTH = 900
PLOT_HEIGHT = 80


def write_html(found: Verification, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises ExportError if `path` cannot be written."""
    with whole(writable(path)) as file:
        file.write_text(html_of_verification(found), encoding="utf-8")


def html_of_verification(found: Verification) -> str:
    """The page: a summary, a plot over the tensors for each runtime, and a table with a histogram a tensor."""
    first, *rest = summary(found)
    title = f"{Path(found.path).name} against the frozen graph"
    lines = "".join(f"<li>{escape(line)}</li>" for line in (*rest, *found.notes))
    return page(
        title,
        f"""<p class="verdict {"ok" if found.ok else "fault"}">{escape(first)}</p>
<p>{escape(found.path)}, {found.file_bytes / 1e6:.3f} MB</p>
<ul>{lines}</ul>
{details(found)}""",
    )


def details(found: Verification) -> str:
    """The plots and the table, to stand in a page."""
    return f"{_overview(found)}\n{_table(found)}"


def _overview(found: Verification) -> str:
    """For each runtime that hands out tensors a pair of bars a tensor: what differs in it alone, and end to end."""
    parts = []
    for runtime in found.runtimes:
        bars = []
        for tensor in found.tensors:
            for one in (one for one in tensor.runtimes if one.runtime == runtime):
                own, all_of_it = one.differing, one.differing_end_to_end
                bars.append(Bar(own / max(one.elements, 1), f"{tensor.name}: {own} differ", "off"))
                bars.append(Bar(all_of_it / max(one.elements, 1), f"{tensor.name}: {all_of_it} end to end", "behind"))
        if bars:
            parts.append(f"<h3>{escape(runtime)}</h3>{chart(bars, PLOT_WIDTH, PLOT_HEIGHT)}")
    if not parts:
        return ""
    return (
        "<h2>Elements that differ, tensor by tensor</h2><p>In the graph's order, on a logarithmic scale from a "
        "millionth to all: orange given the runtime's own inputs to the layer, blue end to end.</p>" + "".join(parts)
    )


def _table(found: Verification) -> str:
    if not found.tensors:
        return "<p>The file has no quantized tensors.</p>"
    heads = ("#", "quantized tensor", "runtime", "elements", "differ", "largest", "end to end", "causes", "steps")
    rows = [_row(order, tensor.name, one) for order, tensor in enumerate(found.tensors, 1) for one in tensor.runtimes]
    return (
        "<h2>Quantized tensors</h2><p>Click a heading to sort. <i>steps</i> counts elements by the runtime's integer "
        "less the graph's, given the runtime's own inputs to the layer, on a logarithmic scale.</p><table><thead><tr>"
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _row(order: int, name: str, one: TensorInRuntime) -> str:
    causes = escape(causes_of(one))
    cells = (
        number(order), text(name), text(one.runtime), number(one.elements),
        number(one.differing / max(one.elements, 1), share(one.differing, one.elements)), number(one.largest),
        number(one.differing_end_to_end / max(one.elements, 1), share(one.differing_end_to_end, one.elements)),
        f'<td data-value="{causes}"{" class=fault" if one.is_fault else ""}>{causes}</td>',
        f'<td data-value="{one.differing}">{histogram(one.steps) if one.differing else ""}</td>',
    )  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>"
