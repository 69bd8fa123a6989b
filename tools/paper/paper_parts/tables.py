"""What was found, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fxcompress.compared import Comparison, Run
from fxcompress.paired import LEVEL, corrected, interval
from fxcompress.spec import Spec
from fxcompress.timing import plan
from paper_parts.published import published
from paper_parts.task import Task

HOW = {"paper": "at the paper's times", "matched": "matched"}
PAIRS = (
    ("float", "Q(w,f)"),
    ("float", "P(w) -> Q(w,f)"),
    ("P(w) -> Q(w,f)", "Q(w,f) -> P(w)"),
    ("P(w,f) -> Q(w,f)", "Q(w,f) -> P(w,f)"),
)


def markdown(task: Task, records: Iterable[Mapping[str, Any]], work: Path) -> str:
    """For each kind of arms a table of metrics, one of differences, and one of what is deployed; a picture beside."""
    texts = []
    for kind in HOW:
        mine = [r for r in records if r["kind"] == kind and r["total_steps"] == task.total_steps]
        if mine:
            found = _comparison(task, mine)
            found.picture(work / f"{task.name}-{kind}.svg", task.metric)
            texts += [f"### {task.name}, {HOW[kind]}", _metrics(task, mine, found), _pairs(found), _files(task, mine)]
    return "\n\n".join([*texts, *(f"- {said}" for said in task.differs)])


def _comparison(task: Task, records: list[Mapping[str, Any]]) -> Comparison:
    timing = {}
    for record in records:
        phases = plan(Spec.parse(record["spec"]), task.total_steps) if record["spec"] else ()
        steps = tuple(sorted({act.step for phase in phases for act in phase.acts_of()}))
        timing[record["arm"]] = (steps, task.total_steps - max(steps, default=0))
    matched = records[0]["kind"] == "matched"
    return Comparison(tuple(Run.of({**r, "spec": r["spec"] or ""}) for r in records), timing, matched)


def _metrics(task: Task, records: list[Mapping[str, Any]], found: Comparison) -> str:
    others = [name for name in records[0]["metrics"] if name != task.metric]
    head = [
        "arm",
        f"{task.metric}, published",
        task.metric,
        "spread",
        *others,
        "in ONNX Runtime",
        "seeds",
        "recovery",
        "rate at events",
    ]
    lines = [head]
    for arm, by_seed in found.metrics.items():
        mine, values, rates = [r for r in records if r["arm"] == arm], list(by_seed.values()), found.rates(arm)
        lines.append([
            arm, published(task.name, arm), f"{statistics.mean(values):.4g}",
            f"{statistics.stdev(values):.2g}" if len(values) > 1 else "–",
            *(f"{statistics.mean(r['metrics'][o] for r in mine):.4g}" for o in others),
            f"{statistics.mean(r['in_runtime'][task.metric] for r in mine):.4g}" if "in_runtime" in mine[0] else "–",
            str(len(values)), str(found.timing[arm][1]) if arm != "float" else "–",
            " – ".join(dict.fromkeys(f"{r:.2g}" for r in rates)) if rates else "–",
        ])  # fmt: skip
    return _table(lines)


def _pairs(found: Comparison) -> str:
    metrics, pairs = found.metrics, []
    for first, second in PAIRS:
        if first in metrics and second in metrics:
            both = [s for s in metrics[first] if s in metrics[second]]
            pairs.append(interval(first, second, [metrics[first][s] - metrics[second][s] for s in both]))
    lines = [["difference", "mean", f"{LEVEL:.0%} interval", "p (Holm)"]]
    for d in corrected(pairs):
        said = [f"{d.low:+.3g} to {d.high:+.3g}", f"{d.p:.2g}"] if d.seeds > 1 else ["one seed", "–"]
        lines.append([f"{d.first} − {d.second}", f"{d.mean:+.3g}", *said])
    return _table(lines)


def _files(task: Task, records: list[Mapping[str, Any]]) -> str:
    density = ["density, 1/Mbit"] if task.higher_is_better else []
    lines = [["arm", "files, MB", "/ float", "latency, ms", "/ float", "Mbit", *density, "verified", "outputs equal"]]
    for arm in dict.fromkeys(r["arm"] for r in records):
        mine = [r for r in records if r["arm"] == arm]
        mean = {key: statistics.mean(r[key] for r in mine) for key in mine[0] if _is_number(mine[0][key])}
        lines.append([
            arm, f"{mean['file_bytes'] / 1e6:.3g}", f"{mean['file_bytes'] / mean['float_file_bytes']:.3f}",
            f"{mean['latency_ms']:.3g}", f"{mean['latency_ratio']:.2f}", f"{mean['megabits']:.3g}",
            *([f"{mean['density']:.3g}"] if density else []),
            "–" if arm == "float" else _verified(mine),
            "–" if arm == "float" else f"{100 * min(r['equal'] for r in mine):.1f} %",
        ])  # fmt: skip
    return _table(lines)


def _verified(records: list[Mapping[str, Any]]) -> str:
    if not all(r["verified"] for r in records):
        return "no"
    return "yes" if all(r.get("exact_kernels", True) for r in records) else "yes, unoptimized"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])
