"""The zoo's rows as Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict

from zoo_parts.measure import Row


def markdown(rows: list[Row]) -> str:
    """One summary line a library, then one line a model."""
    by_library: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_library[row.library].append(row)
    lines = [
        "| library | captured | equal in train | equal in eval | whole-model islands | mean share of weight MACs | "
        "mean share of activation edges | median time in forward passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_summary(library, found) for library, found in by_library.items()]
    for library, found in by_library.items():
        lines += ["", f"## {library}", "", *_HEAD, *map(_line, found)]
    return "\n".join(lines)


_HEAD = (
    "| model | train | eval | weight MACs | activation edges | time in forward passes | memory, MB | islands |",
    "|---|---|---|---|---|---|---|---|",
)


def _summary(library: str, rows: list[Row]) -> str:
    done = [r for r in rows if r.captured]
    train = sum(r.train == "equal" for r in done)
    evaluation = sum(r.eval == "equal, copy equal" for r in done)
    whole = sum("(the model)" in r.islands for r in done)
    weights = statistics.mean(r.weights for r in done) if done else 0
    edges = statistics.mean(r.edges for r in done) if done else 0
    factor = statistics.median(r.factor for r in done) if done else 0
    return (
        f"| {library} | {len(done)} of {len(rows)} | {train} | {evaluation} | {whole} | {100 * weights:.1f} % | "
        f"{100 * edges:.1f} % | {factor:.1f} |"
    )


def _line(row: Row) -> str:
    if not row.captured:
        return f"| {row.name} | | | | | | | not captured: {_cell(row.error)} |"
    islands = "; ".join(f"`{path}`: {reason}" for path, reason in list(row.islands.items())[:4])
    more = f" and {len(row.islands) - 4} more" if len(row.islands) > 4 else ""
    failed = f" **{_cell(row.error)}**" if row.error else ""
    return (
        f"| {row.name} | {row.train} | {row.eval.replace('equal, copy equal', 'equal')} | {100 * row.weights:.1f} % | "
        f"{100 * row.edges:.1f} % | {row.factor:.1f} | {row.memory_mb:.0f} | {_cell(islands + more)}{failed} |"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:400]
