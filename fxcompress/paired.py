"""Paired differences of arms over seeds: means, confidence intervals and what they allow to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from fxcompress.extras import needed

LEVEL = 0.95
"""Of confidence, for each interval by itself."""


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` over the seeds that both have, in the metric's units: the mean and its interval of
    Student's t at LEVEL. `p` is two-sided, by Holm's method for all pairs of a comparison together."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def is_significant(self) -> bool:
        """Whether p, over all pairs together, is below 1 - LEVEL."""
        return self.seeds > 1 and self.p < 1 - LEVEL

    def __str__(self) -> str:
        start = f"{self.first} minus {self.second}: {self.mean:+.4g}"
        if self.seeds < 2:
            return f"{start} (one seed: nothing can be said)"
        verdict = "significant" if self.is_significant else "no significant difference"
        return (
            f"{start}, {LEVEL:.0%} interval {self.low:+.4g} to {self.high:+.4g}, {self.seeds} seeds, p = {self.p:.2g}: "
            f"{verdict}"
        )


def differences(metrics: Mapping[str, Mapping[int, float]]) -> list[Difference]:
    """Every pair of arms, from each arm's metric by seed."""
    return corrected([_difference(first, second, metrics) for first, second in combinations(metrics, 2)])


def corrected(pairs: Iterable[Difference]) -> list[Difference]:
    """The same with p by Holm's method for all of them together, from p of each by itself."""
    found = list(pairs)
    ranked = sorted(range(len(found)), key=lambda i: found[i].p)
    largest = 0.0
    for rank, i in enumerate(ranked):
        largest = max(largest, min(found[i].p * (len(found) - rank), 1.0))
        found[i] = replace(found[i], p=largest)
    return found


def _difference(first: str, second: str, metrics: Mapping[str, Mapping[int, float]]) -> Difference:
    seeds = [seed for seed in metrics[first] if seed in metrics[second]]
    return interval(first, second, [metrics[first][s] - metrics[second][s] for s in seeds])


def interval(first: str, second: str, values: Sequence[float]) -> Difference:
    """The difference of one pair, `p` for itself; NaN without seeds."""
    if len(values) < 2:
        mean = values[0] if values else math.nan
        return Difference(first, second, mean, math.nan, math.nan, 1.0, len(values))
    stats = needed("scipy.stats", "study")
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    if not error:
        return Difference(first, second, mean, mean, mean, 0.0 if mean else 1.0, len(values))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(values) - 1))
    return Difference(first, second, mean, mean - reach, mean + reach, p, len(values))
