"""`search`: the best schedule among the specs of a space, by one or several objectives, with Optuna."""

from __future__ import annotations

import inspect
import logging
import math
import os
import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from fxcompress.compare import Build, Evaluate, trained_net
from fxcompress.errors import CompareError
from fxcompress.extras import needed
from fxcompress.fields import nearest
from fxcompress.found import Found
from fxcompress.objectives import COSTS
from fxcompress.slots import BEAT, Slots
from fxcompress.space import Space
from fxcompress.spec import Spec
from fxcompress.timing import Length

SAMPLERS = ("tpe", "random")


def search(  # noqa: PLR0913 - the public surface
    space: Space | str,
    build: Build,
    train: Callable[..., None],
    evaluate: Evaluate,
    *,
    example_inputs: Any,
    total_steps: int,
    steps_per_epoch: int | None = None,
    trials: int = 30,
    objectives: Sequence[str] = ("metric",),
    maximize: bool = True,
    seeds: Sequence[int] = (0,),
    sampler: str = "tpe",
    storage: str | os.PathLike[str] = "search.journal",
    name: str = "search",
    target: str = "onnxruntime",
    beat: float = BEAT,
) -> Found:
    """Try `trials` specs of `space` and rank them.

    Args:
        space: what may be chosen, or a spec whose order and times may.
        build, evaluate, example_inputs, total_steps, steps_per_epoch, target: as for `compare`.
        train: as for `compare`; if it takes a third argument, that is `progress(step, metric)`, which it may call to
            have a trial that is worse than the median of others at that step stopped (with one objective only).
        trials: in the whole study, whoever runs them.
        objectives: "metric", and costs of the trained net, which are minimized: "bytes" of weights without zeros,
            "bops", "latency" in milliseconds.
        maximize: whether a greater metric is better.
        seeds: every trial trains once with each; its metric is the mean.
        sampler: "tpe" learns from earlier trials; "random" gives trial k the same spec in every run.
        storage: a file for processes of one machine (or file system), or the URL of a database that Optuna speaks to,
            such as "sqlite:///search.db" or "postgresql://user@host/database". Processes with the same `storage` and
            `name` share one study, and a study that was killed goes on where it was.
        beat: seconds between signs of life of a running trial; one that is silent for six is done again.

    Raises CompareError for wrong arguments or functions, SpecError for a space that cannot be, LoadError without
    Optuna.
    """
    made = space if isinstance(space, Space) else Space(space)
    _check(objectives, sampler)
    needed("optuna", "study").logging.set_verbosity(logging.WARNING)
    directions = ["maximize" if o == "metric" and maximize else "minimize" for o in objectives]
    study = _study(storage_of(storage), name, directions, _sampler(sampler, seeds[0]))
    about = {"space": repr(made), "objectives": list(objectives), "total_steps": total_steps, "seeds": list(seeds)}
    _agree(study, about)
    slots = Slots(study, trials, beat)
    length = Length(total_steps, steps_per_epoch)
    job = _Job(made, build, train, evaluate, length, target, example_inputs, tuple(objectives), tuple(seeds))
    with tqdm(total=trials, desc="search", disable=None) as bar:
        while (trial := slots.claim()) is not None:
            with slots.alive(trial):
                _run(study, trial, job)
            bar.n = sum(t.state.is_finished() and t.state.name != "FAIL" for t in study.get_trials(deepcopy=False))
            bar.refresh()
    return Found(study, tuple(objectives), maximize)


def _check(objectives: Sequence[str], sampler: str) -> None:
    known = ("metric", *COSTS)
    for objective in objectives:
        if objective not in known:
            raise CompareError(f"objective is {objective!r}; {nearest(objective, known)}it must be {', '.join(known)}")
    if not objectives or len(set(objectives)) < len(objectives):
        raise CompareError(f"objectives are {list(objectives)}; name each once, and one at least")
    if sampler not in SAMPLERS:
        raise CompareError(f"sampler is {sampler!r}; {nearest(sampler, SAMPLERS)}it must be {' or '.join(SAMPLERS)}")


def storage_of(storage: str | os.PathLike[str]) -> Any:
    """Optuna's storage for a path or a URL. Raises CompareError if it cannot be had."""
    optuna = needed("optuna", "study")
    text = os.fspath(storage)
    try:
        if "://" in text:
            return optuna.storages.get_storage(text)
        backend = needed("optuna.storages.journal", "study").JournalFileBackend(text)
        return optuna.storages.JournalStorage(backend)
    except Exception as error:  # drivers raise what they like
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CompareError(
            f"cannot use storage '{text}': {type(error).__name__}: {reason}; name a file, or a URL such as "
            "sqlite:///search.db"
        ) from None


def _sampler(kind: str, seed: int) -> Any:
    samplers = needed("optuna.samplers", "study")
    if kind == "random":
        return _by_slot(samplers, seed)
    # Trials that run elsewhere count as bad, so that processes do not all try the same.
    return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _by_slot(samplers: Any, seed: int) -> Any:
    """A sampler whose choices for a slot are the same whichever process makes them, and however often."""

    class BySlot(samplers.BaseSampler):  # type: ignore[misc]
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            key = f"{seed} {trial.user_attrs['slot']} {param_name}"
            drawn = samplers.RandomSampler(seed=zlib.crc32(key.encode()))
            return drawn.sample_independent(study, trial, param_name, param_distribution)

    return BySlot()


def _study(storage: Any, name: str, directions: Sequence[str], sampler: Any) -> Any:
    optuna = needed("optuna", "study")
    return optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, directions=directions, load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )  # fmt: skip


def _agree(study: Any, about: dict[str, Any]) -> None:
    """Note what the study is about, or refuse to mix two."""
    was = study.user_attrs.get("about")
    if was is None:
        study.set_user_attr("about", about)
    elif was != about:
        other = next(key for key in about if was.get(key) != about[key])
        raise CompareError(
            f"study '{study.study_name}' was begun with {other}={was.get(other)!r}, not {about[other]!r}; give this "
            "one another name or storage"
        )


@dataclass(frozen=True)
class _Job:
    """What every trial needs."""

    space: Space
    build: Build
    train: Callable[..., None]
    evaluate: Evaluate
    length: Length
    target: str
    example_inputs: Any
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]

    def values(self, spec: Spec, progress: Any) -> list[float]:
        """Train with every seed; the mean of each objective."""
        found: list[list[float]] = []
        for seed in self.seeds:
            train = self.train
            if len(inspect.signature(self.train).parameters) > 2:

                def train(net: nn.Module, optimizer: Any) -> None:
                    self.train(net, optimizer, progress)

            net: Any = trained_net(spec, self.length, self.target, self.example_inputs, seed, self.build, train)
            metric = float(self.evaluate(net)) if "metric" in self.objectives else math.nan
            found.append([metric if o == "metric" else COSTS[o](net) for o in self.objectives])
        return [statistics.mean(column) for column in zip(*found, strict=True)]


def _run(study: Any, trial: Any, job: _Job) -> None:
    optuna = needed("optuna", "study")
    spec = job.space.choose(trial)
    trial.set_user_attr("spec", str(spec))

    def progress(step: int, metric: float) -> None:
        if job.objectives == ("metric",):
            trial.report(metric, step)
            if trial.should_prune():
                raise optuna.TrialPruned

    state, values = optuna.trial.TrialState.COMPLETE, None
    try:
        values = job.values(spec, progress)
        if not all(map(math.isfinite, values)):
            trial.set_user_attr("why", f"objectives are {values}")
            state, values = optuna.trial.TrialState.PRUNED, None
    except optuna.TrialPruned:
        state = optuna.trial.TrialState.PRUNED
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    study.tell(trial, values, state=state, skip_if_finished=True)
