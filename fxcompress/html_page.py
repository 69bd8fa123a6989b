"""What HTML pages of this library share: one file, its style and its script inside, nothing to load."""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; }
h2 { font-size: 1.1em; margin-top: 2em; }
.ok { color: #18794e; } .fault { color: #c62828; } .verdict { font-weight: 600; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25em .6em; text-align: left; border-bottom: 1px solid #8884; vertical-align: bottom; }
th { cursor: pointer; position: sticky; top: 0; background: Canvas; white-space: nowrap; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; max-width: 100%; } svg text { font-size: 9px; text-anchor: middle; fill: currentColor; }
svg line { stroke: #8888; } rect.equal { fill: #8888; } rect.off { fill: #d9822b; } rect.behind { fill: #4a7fc1; }
.graph { font: 12px/1.5 ui-monospace, monospace; } .graph li:target { background: #d9822b44; }
.graph .mask { color: #18794e; } .graph .grid { color: #4a7fc1; } .graph a { color: inherit; }
pre { overflow-x: auto; } summary { cursor: pointer; }
"""

SORT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending";
  const value = row => row.cells[column].dataset.value;
  const words = [...body.rows].some(row => isNaN(value(row)));
  const order = (a, b) => words ? value(a).localeCompare(value(b)) : value(a) - value(b);
  const rows = [...body.rows].sort((a, b) => down ? order(b, a) : order(a, b));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
});
"""


def page(title: str, body: str, script: str = SORT) -> str:
    """A whole page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
{body}
<script>{script}</script>
</body>
</html>
"""


def number(value: float, shown: str = "") -> str:
    """A cell with a number, sorted by its value."""
    return f'<td class="number" data-value="{value}">{shown or value}</td>'


def text(value: str) -> str:
    """A cell with words."""
    return f'<td data-value="{escape(value)}">{escape(value)}</td>'
