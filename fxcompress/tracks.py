"""What each rule does over the steps of training, as curves: sparsity or bits of one kind of tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def bars(found: Sequence[Track], total_steps: int, width: int = 60) -> list[str]:
    """One line a track, `width` columns for the whole training: a dot where nothing acts yet, then bars that rise."""
    ends = [round(total_steps * (column + 1) / width) for column in range(width)]
    longest = max((len(track.label) for track in found), default=0)
    return [f"{track.label:<{longest}} {''.join(_column(track.share_at(end)) for end in ends)}" for track in found]


def _column(share: float) -> str:
    return "·" if share <= 0 else _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]
