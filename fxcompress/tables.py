"""A table and lines of text, as people read them in a terminal or a log."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

WIDTH = 120


def text_of(table: Table | None, lines: Iterable[str] = ()) -> str:
    """The table, if there is one, and the lines below it."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False, markup=False)
    if table is not None:
        console.print(table)
    for line in lines:
        console.print(line)
    return out.getvalue().rstrip()
