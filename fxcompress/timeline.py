"""A schedule as a table for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fxcompress.schedule import Event, Schedule


def render_timeline(schedule: Schedule) -> str:
    """One line for each step, rule and kind of tensor; notes below."""
    groups: dict[tuple[int, int, str, str, float], list[Event]] = {}
    for event in schedule.events:
        groups.setdefault((event.step, event.rule, event.action, event.kind, event.value), []).append(event)
    table = Table(title=f"schedule over {schedule.total_steps or '?'} steps, now at {schedule.steps}")
    for column in ("step", "%", "rule", "action", "tensors", "to", "done"):
        table.add_column(column, justify="right" if column in ("step", "%", "to") else "left")
    for (step, rule, action, kind, value), events in sorted(groups.items(), key=lambda item: item[0][:2]):
        share = f"{100 * step / schedule.total_steps:.0f}" if schedule.total_steps else ""
        to = f"{100 * value:.1f} % zeros" if action == "prune" else f"{value:.0f} bits"
        tensors = f"{len(events)} {kind}s" if len(events) > 1 else f"{kind} {events[0].tensor}"
        table.add_row(str(step), share, str(rule + 1), action, tensors, to, "yes" if step <= schedule.steps else "")
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(table)
    for note in schedule.notes:
        console.print(note)
    return out.getvalue()
