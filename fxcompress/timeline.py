"""Events, and a timeline of them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fxcompress.sites import Kind
from fxcompress.tables import text_of
from fxcompress.timing import Act, Phase


@dataclass(frozen=True)
class Event:
    """After optimizer step `step`, `tensor` is pruned to a sparsity or quantized to a number of bits.

    `action`: "prune" or "quantize", or "refresh" (the mask anew), "remember" and "rewind" (weights go back to what they
    were), "release" (the mask is lifted). `path` is the pruner, the quantizer or the group of channels; it observes
    during the `window` steps before the event. `is_last`: the mask is frozen then.
    """

    step: int
    tensor: str
    kind: Kind
    action: str
    value: float
    path: str
    rule: int
    window: int
    is_last: bool = False

    @classmethod
    def of(cls, act: Act, phase: Phase, tensor: str, path: str) -> Event:
        """What a phase does to one tensor at one step."""
        value, window = act.value, phase.rule.window
        return cls(act.step, tensor, phase.target, act.action, value, path, phase.rule_index, window, act.is_last)


def render_timeline(events: Sequence[Event], steps: int, total_steps: int | None, notes: Sequence[str]) -> str:
    """One line for each step, rule and kind of tensor; notes below."""
    groups: dict[tuple[int, int, str, str, float], list[Event]] = {}
    for event in events:
        groups.setdefault((event.step, event.rule, event.action, event.kind, event.value), []).append(event)
    table = Table(title=f"schedule over {total_steps or '?'} steps, now at {steps}")
    for column in ("step", "%", "rule", "action", "tensors", "to", "done"):
        table.add_column(column, justify="right" if column in ("step", "%", "to") else "left")
    for (step, rule, action, kind, value), group in sorted(groups.items(), key=lambda item: item[0][:2]):
        share = f"{100 * step / total_steps:.0f}" if total_steps else ""
        zeros = action in ("prune", "refresh")
        to = f"{100 * value:.1f} % zeros" if zeros else f"{value:.0f} bits" if action == "quantize" else ""
        tensors = f"{len(group)} {kind}s" if len(group) > 1 else f"{kind} {group[0].tensor}"
        table.add_row(str(step), share, str(rule + 1), action, tensors, to, "yes" if step <= steps else "")
    return text_of(table, notes)
