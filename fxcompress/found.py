"""What a search found: a ranking, the importance of each choice, the front of several objectives, the best specs."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from fxcompress.errors import CompareError
from fxcompress.extras import needed
from fxcompress.files import whole, writable
from fxcompress.picture import bytes_of, form_of
from fxcompress.spec import Spec
from fxcompress.tables import text_of


@dataclass(frozen=True)
class Found:
    """A study's finished trials. `str()` is the ranking and the importance of each choice."""

    study: Any
    objectives: tuple[str, ...]
    maximize: bool

    @cached_property
    def trials(self) -> list[Any]:
        """Completed trials, the best first by the first objective."""
        done = [t for t in self.study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
        return sorted(done, key=lambda t: (-t.values[0] if self._downwards else t.values[0], t.user_attrs["slot"]))

    @property
    def stopped(self) -> int:
        """How many trials were stopped early, or had no finite objective."""
        return sum(t.state.name == "PRUNED" for t in self.study.get_trials(deepcopy=False))

    @cached_property
    def front(self) -> list[Any]:
        """Trials that no other is at least as good as in every objective and better in one; the best, for one."""
        numbers = {t.number for t in self.study.best_trials} if len(self.objectives) > 1 else {self._best.number}
        return [t for t in self.trials if t.number in numbers]

    @property
    def _best(self) -> Any:
        if not self.trials:
            raise CompareError("no trial of the study was completed; look at what train and evaluate give")
        return self.trials[0]

    @property
    def best(self) -> Spec:
        """The spec of the best trial by the first objective."""
        return spec_of(self._best)

    @cached_property
    def importance(self) -> dict[str, float]:
        """The share of each choice in how the first objective varies (PED-ANOVA, arXiv 2304.10255), largest first."""
        if len(self.trials) < 4 or len({t.values[0] for t in self.trials}) < 2:
            return {}
        importance = needed("optuna.importance", "study")
        evaluator = importance.PedAnovaImportanceEvaluator()
        sign = -1 if self._downwards else 1
        with warnings.catch_warnings():
            # It says that it looks at what makes the target low, which is meant.
            warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
            found: dict[str, float] = importance.get_param_importances(
                self.study, evaluator=evaluator, target=lambda t: sign * t.values[0]
            )
        return found

    @property
    def _downwards(self) -> bool:
        return self.objectives[0] == "metric" and self.maximize

    def __str__(self) -> str:
        table = Table(title=f"{len(self.trials)} trials, {self.stopped} stopped early")
        for column in ("rank", "trial", *self.objectives, "front", "spec"):
            table.add_column(column, justify="left" if column == "spec" else "right")
        for rank, trial in enumerate(self.trials, start=1):
            values = [f"{value:.5g}" for value in trial.values]
            on_front = "*" if trial in self.front else ""
            table.add_row(str(rank), str(trial.user_attrs["slot"]), *values, on_front, _short(trial))
        return text_of(table, [f"importance of {name}: {share:.0%}" for name, share in self.importance.items()])

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `best.yaml`, a `front-K.yaml` for each spec of the front if there are several objectives, `ranking.txt`
        and `search.svg`. Returns their paths. Raises ExportError if the folder cannot be written to."""
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        texts = {"best.yaml": _yaml(self.best), "ranking.txt": str(self)}
        if len(self.objectives) > 1:
            texts |= {f"front-{k}.yaml": _yaml(spec_of(t)) for k, t in enumerate(self.front, start=1)}
        for name, text in texts.items():
            with whole(writable(home / name)) as file:
                file.write_text(text + "\n", encoding="utf-8")
        self.picture(home / "search.svg")
        return [home / name for name in (*texts, "search.svg")]

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Write a picture (.png, .svg or .pdf): the objectives of all trials with their front, and how much each choice
        matters. Raises ExportError if `path` cannot be written."""
        form = form_of(path)
        with whole(writable(path)) as file:
            file.write_bytes(_drawn(self, form))


def spec_of(trial: Any) -> Spec:
    """The spec that a trial trained."""
    return Spec.parse(trial.user_attrs["spec"])


def _short(trial: Any) -> str:
    lines = trial.user_attrs["spec"].splitlines()
    return lines[0] if len(lines) == 1 else trial.params.get("order", "in its file")  # type: ignore[no-any-return]


def _yaml(spec: Spec) -> str:
    from fxcompress.notation import to_yaml

    return to_yaml(spec.to_dict()["rules"]).rstrip("\n")


def _drawn(found: Found, form: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = sorted(found.trials, key=lambda t: t.user_attrs["slot"])
    if len(found.objectives) > 1:
        axes = [t.values[1] for t in points], [t.values[0] for t in points]
        front = sorted((t.values[1], t.values[0]) for t in found.front)
        left.step(*zip(*front, strict=True), where="post", color="C3", linewidth=0.8)
        left.plot(*zip(*front, strict=True), "o", color="C3", label="front")
        left.set_xlabel(found.objectives[1])
        left.legend()
    else:
        axes = [t.user_attrs["slot"] for t in points], [t.values[0] for t in points]
        left.set_xlabel("trial")
    left.plot(*axes, "o", color="C0", alpha=0.6, markersize=4, zorder=0)
    left.set_ylabel(found.objectives[0])
    names = list(found.importance)
    right.barh(range(len(names)), [found.importance[n] for n in names], color="C0")
    right.set_yticks(range(len(names)), names, fontsize=8)
    right.invert_yaxis()
    right.set_xlabel(f"importance for {found.objectives[0]}")
    return bytes_of(figure, form)
