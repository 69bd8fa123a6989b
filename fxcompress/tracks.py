"""What each rule does over the steps of training, as curves: sparsity or bits of one kind of tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fxcompress.rules import Prune
from fxcompress.timing import Phase

FLOAT_BITS = 32
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Track:
    """One rule on weights or activations. `points`: (step, value) of each change, ascending; the value is the sparsity
    from then on, 0 to 1, or the bits, FLOAT_BITS before the first."""

    label: str
    is_sparsity: bool
    points: tuple[tuple[int, float], ...]

    def value_at(self, step: int) -> float:
        """The sparsity or the bits after optimizer step `step`."""
        before = 0.0 if self.is_sparsity else float(FLOAT_BITS)
        return next((value for at, value in reversed(self.points) if at <= step), before)

    def share_at(self, step: int) -> float:
        """How far the rule has gone, 0 to 1."""
        if self.is_sparsity:
            most = max((value for _, value in self.points), default=0.0)
            return self.value_at(step) / most if most else 0.0
        return float(self.value_at(step) < FLOAT_BITS)


def tracks(phases: Iterable[Phase]) -> list[Track]:
    """A track for each rule and kind of tensor."""
    return [_track(phase) for phase in phases]


def _track(phase: Phase) -> Track:
    letter = "w" if phase.target == "weight" else "f"
    if not isinstance(phase.rule, Prune):
        return Track(f"Q{phase.rule.bits}({letter})", False, ((phase.steps[0], float(phase.rule.bits)),))
    acts = [act for act in phase.acts_of() if act.action in ("prune", "refresh", "release")]
    points = tuple((act.step, act.value if act.action != "release" else 0.0) for act in acts)
    return Track(f"P{phase.rule.share:g}({letter})", True, points)


def bars(
    found: Sequence[Track], total_steps: int, rates: Mapping[int, float] | None = None, width: int = 60
) -> list[str]:
    """One line a track, `width` columns for the whole training: a dot where nothing acts yet, then bars that rise; then
    one of learning rates by step, if some were seen, the highest as the tallest."""
    ends = [round(total_steps * (column + 1) / width) for column in range(width)]
    lines = [(track.label, "".join(_column(track.share_at(end)) for end in ends)) for track in found]
    if rates:
        lines.append((f"lr {max(rates.values()):.3g}", _rate_bar(rates, [0, *ends])))
    longest = max((len(label) for label, _ in lines), default=0)
    return [f"{label:<{longest}} {line}" for label, line in lines]


def _rate_bar(rates: Mapping[int, float], ends: Sequence[int]) -> str:
    most, last, columns = max(rates.values()), max(rates), []
    for start, end in pairwise(ends):
        seen = [rate for step, rate in rates.items() if step <= end]
        columns.append(_column(seen[-1] / most) if seen and most and start < last else " ")
    return "".join(columns)


def _column(share: float) -> str:
    return "·" if share <= 0 else _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]
