"""What a comparison of specs found: every training, the arms' means, and the paired differences."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from rich.table import Table

from fxcompress.files import whole, writable
from fxcompress.paired import LEVEL, Difference, differences
from fxcompress.picture import bytes_of, form_of
from fxcompress.tables import text_of


@dataclass(frozen=True)
class Run:
    """One training: its metric, the learning rate at each event by step, and a digest of the weights it began with."""

    arm: str
    seed: int
    spec: str
    metric: float
    rates: Mapping[int, float]
    weights: str
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """From a record of a file."""
        rates = {int(step): float(rate) for step, rate in record["rates"].items()}
        names = ("arm", "seed", "spec", "metric", "weights", "seconds")
        return cls(rates=rates, **{name: record[name] for name in names})


@dataclass(frozen=True)
class Comparison:
    """`timing`: by arm the steps of its events, and how many steps follow the last. `str()` is all that was found."""

    runs: tuple[Run, ...]
    timing: Mapping[str, tuple[tuple[int, ...], int]]
    matched: bool

    @cached_property
    def metrics(self) -> dict[str, dict[int, float]]:
        """By arm, the metric by seed."""
        found: dict[str, dict[int, float]] = {name: {} for name in self.timing}
        for run in self.runs:
            found[run.arm][run.seed] = run.metric
        return found

    @cached_property
    def differences(self) -> list[Difference]:
        """Every pair of arms."""
        return differences(self.metrics)

    def rates(self, arm: str) -> tuple[float, float] | None:
        """The lowest and the highest learning rate at the events of an arm."""
        rates = [rate for run in self.runs if run.arm == arm for rate in run.rates.values()]
        return (min(rates), max(rates)) if rates else None

    def __str__(self) -> str:
        table = Table(title="matched arms" if self.matched else "arms as they are: not matched")
        for column in ("arm", "mean", "spread", "seeds", "recovery", "learning rate at events"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for name, by_seed in self.metrics.items():
            values, rates = list(by_seed.values()), self.rates(name)
            spread = f"{statistics.stdev(values):.4g}" if len(values) > 1 else ""
            said = _range(rates)
            recovery = str(self.timing[name][1]) if self.timing[name][0] else ""
            table.add_row(name, f"{statistics.mean(values):.6g}", spread, str(len(values)), recovery, said)
        return text_of(table, [str(difference) for difference in self.differences])

    def markdown(self) -> str:
        """Two tables for a document: the arms, and the differences."""
        lines = [
            "| arm | mean | spread | seeds | recovery | learning rate at events |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, by_seed in self.metrics.items():
            values, rates = list(by_seed.values()), self.rates(name)
            spread = f"{statistics.stdev(values):.3g}" if len(values) > 1 else "–"
            said = _range(rates) or "–"
            recovery = str(self.timing[name][1]) if self.timing[name][0] else "–"
            lines.append(f"| {name} | {statistics.mean(values):.4g} | {spread} | {len(values)} | {recovery} | {said} |")
        lines += ["", f"| difference | mean | {LEVEL:.0%} interval | p (Holm) | |", "|---|---:|---:|---:|---|"]
        for d in self.differences:
            verdict = "significant" if d.is_significant else "not significant"
            lines.append(
                f"| {d.first} − {d.second} | {d.mean:+.3g} | {d.low:+.3g} to {d.high:+.3g} | {d.p:.2g} | {verdict} |"
            )
        return "\n".join(lines)

    def picture(self, path: str | os.PathLike[str], metric: str = "metric") -> None:
        """Write a picture (.png, .svg or .pdf): every seed's metric, lines joining a seed's, and the differences with
        their intervals. Raises ExportError if `path` cannot be written."""
        form = form_of(path)
        with whole(writable(path)) as file:
            file.write_bytes(_drawn(self, metric, form))


def _range(rates: tuple[float, float] | None) -> str:
    return "" if rates is None else " – ".join(dict.fromkeys(f"{rate:.3g}" for rate in rates))


def _drawn(found: Comparison, metric: str, form: str) -> bytes:
    from matplotlib.figure import Figure

    pairs = found.differences
    figure = Figure(figsize=(9, 0.8 + 0.32 * max(len(found.metrics), len(pairs))), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(found.metrics)
    for seed in sorted({run.seed for run in found.runs}):
        ys = [y for y, name in enumerate(names) if seed in found.metrics[name]]
        left.plot([found.metrics[names[y]][seed] for y in ys], ys, "o-", alpha=0.35, linewidth=0.7, markersize=4)
    for y, name in enumerate(names):
        left.plot(statistics.mean(found.metrics[name].values()), y, "k|", markersize=14)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_xlabel(metric)
    left.invert_yaxis()
    for y, d in enumerate(pairs):
        colour = "C3" if d.is_significant else "0.5"
        right.plot([d.low, d.high], [y, y], color=colour)
        right.plot(d.mean, y, "o", color=colour, markersize=4)
    right.axvline(0, color="0.3", linewidth=0.7)
    right.set_yticks(range(len(pairs)), [f"{d.first}\n− {d.second}" for d in pairs], fontsize=6)
    right.set_xlabel(f"difference of {metric}, {LEVEL:.0%} interval")
    right.invert_yaxis()
    return bytes_of(figure, form)
