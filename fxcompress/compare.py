"""`compare`: several specs trained alike, seed by seed, and what their differences allow to say."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fxcompress.api import compress
from fxcompress.compared import Comparison, Run
from fxcompress.errors import CompareError
from fxcompress.json_lines import Store
from fxcompress.spec import Spec
from fxcompress.timing import Length, plan

Build = Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
Train = Callable[[nn.Module, torch.optim.Optimizer], None]
Evaluate = Callable[[nn.Module], float]

NEAR = 0.01
"""Of the largest rate: how far apart two learning rates may be and still count as matched."""


def compare(  # noqa: PLR0913 - the public surface
    specs: Mapping[str, Any],
    build: Build,
    train: Train,
    evaluate: Evaluate,
    *,
    example_inputs: Any,
    total_steps: int,
    steps_per_epoch: int | None = None,
    seeds: Iterable[int] = range(5),
    matched: bool = True,
    target: str = "onnxruntime",
    store: str | Path | None = None,
) -> Comparison:
    """Train every spec with every seed, alike but for the spec, and compare the metrics pair by pair.

    Args:
        specs: by name, in any form that `compress` takes; None stands for the model as it is, in float.
        build: gives a new model and the optimizer of its parameters, random only through `torch`, `numpy` or `random`,
            which are seeded before.
        train: takes `total_steps` steps of that optimizer on the net, seeded alike before, so that every arm sees the
            same data in the same order if it draws from those generators.
        evaluate: gives the metric of the trained net, which is in evaluation mode.
        example_inputs, total_steps, steps_per_epoch, target: as for `compress`.
        seeds: one training of each arm for each; five or more for intervals that say something.
        matched: refuse arms that do not have as many steps of recovery after their last event, or that see other
            learning rates at their events. False compares them all the same, and the result says so.
        store: a file that gets a JSON line for each training; those in it are not repeated.

    Raises CompareError where arms are not alike, SpecError for a spec that does not fit.
    """
    arms = {name: None if spec is None else Spec.of(spec) for name, spec in specs.items()}
    length = Length(total_steps, steps_per_epoch)
    events = {name: _event_steps(spec, length) for name, spec in arms.items()}
    if not arms:
        raise CompareError("there are no specs to compare; pass at least one by name")
    if matched:
        _refuse_recovery(events, total_steps)
    seeds, kept = list(seeds), Store(store)
    work = [(seed, name) for seed in seeds for name in arms]
    runs: list[Run] = []
    weights: dict[int, str] = {}
    for seed, name in tqdm(work, desc="compare", disable=None):
        key = {"arm": name, "seed": seed, "spec": str(arms[name]), "total_steps": total_steps}
        found = kept.find(key)
        if found is None:
            arm = _Arm(name, arms[name], length, target, example_inputs)
            found = {**key, **arm.trained(seed, build, train, evaluate, weights)}
            kept.add(found)
        run = Run.of(found)
        if weights.setdefault(seed, run.weights) != run.weights:
            raise CompareError(_other_weights(name, seed))
        runs.append(run)
        if matched:
            _refuse_rates(runs)
    return Comparison(tuple(runs), {n: (s, total_steps - max(s, default=0)) for n, s in events.items()}, matched)


@dataclass(frozen=True)
class _Arm:
    """One spec of a comparison."""

    name: str
    spec: Spec | None
    length: Length
    target: str
    example_inputs: Any

    def trained(
        self, seed: int, build: Build, train: Train, evaluate: Evaluate, weights: Mapping[int, str]
    ) -> dict[str, Any]:
        """Train and evaluate with one seed."""
        digest = ""

        def watched() -> Any:
            nonlocal digest
            model, optimizer = _built(build)
            digest = digest_of(model)
            if weights.get(seed, digest) != digest:
                raise CompareError(_other_weights(self.name, seed))
            return model, optimizer

        start = time.perf_counter()
        net: Any = trained_net(self.spec, self.length, self.target, self.example_inputs, seed, watched, train)
        seconds = round(time.perf_counter() - start, 3)
        rates = {} if self.spec is None else {e.step: net.schedule.rates[e.step] for e in net.schedule.events if e.step}
        return {"metric": float(evaluate(net)), "rates": rates, "weights": digest, "seconds": seconds}


def trained_net(  # noqa: PLR0913 - what a training is
    spec: Spec | None, length: Length, target: str, example_inputs: Any, seed: int, build: Build, train: Train
) -> nn.Module:
    """A new model, compressed by `spec` (None: as it is) and trained with one seed, in evaluation mode.

    Raises CompareError if `build` gives no model and optimizer, or `train` takes another number of steps.
    """
    _seed(seed)
    model, optimizer = _built(build)
    counted = _count_steps(optimizer)
    net: nn.Module = model
    if spec is not None:
        options: dict[str, Any] = {**length._asdict(), "optimizer": optimizer, "target": target}
        net = compress(model, spec, example_inputs, **options)
    _seed(seed)
    train(net, optimizer)
    if counted[0] != length.total_steps:
        raise CompareError(
            f"train took {counted[0]} steps of the optimizer for '{spec or 'the float model'}', not total_steps="
            f"{length.total_steps}; take as many for every spec"
        )
    return net.eval()


def _event_steps(spec: Spec | None, length: Length) -> tuple[int, ...]:
    phases = () if spec is None else plan(spec, *length)
    return tuple(sorted({act.step for phase in phases for act in phase.acts_of()}))


def _refuse_recovery(events: Mapping[str, tuple[int, ...]], total_steps: int) -> None:
    left = {name: total_steps - steps[-1] for name, steps in events.items() if steps}
    if len(set(left.values())) > 1:
        said = ", ".join(f"'{name}' {steps}" for name, steps in left.items())
        raise CompareError(
            f"the arms are not matched: steps of recovery after the last event are {said}; give them the same last "
            "event (matched_arms does), or pass matched=False to compare them as they are"
        )


def _refuse_rates(runs: Iterable[Run]) -> None:
    seen = {run.arm: sorted(set(run.rates.values())) for run in runs if run.rates}
    # Each rate that one arm sees is one that every other arm sees, but for the rounding of times to steps.
    near = NEAR * max((rates[-1] for rates in seen.values()), default=0.0)
    alike = all(
        min(abs(rate - other) for other in others) <= near
        for rates in seen.values() for rate in rates for others in seen.values()
    )  # fmt: skip
    if not alike:
        said = ", ".join(f"'{name}' {', '.join(f'{r:.3g}' for r in rates)}" for name, rates in seen.items())
        raise CompareError(
            f"the arms are not matched: learning rates at their events are {said}; hold the rate while events act "
            "(held_rate does), or pass matched=False to compare them as they are"
        )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _built(build: Build) -> tuple[nn.Module, torch.optim.Optimizer]:
    made: Any = build()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], torch.optim.Optimizer)):
        raise CompareError(f"build gave {type(made).__name__}; return a model and the optimizer of its parameters")
    return made


def _count_steps(optimizer: torch.optim.Optimizer) -> list[int]:
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    optimizer.register_step_post_hook(count)
    return counted


def digest_of(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of all weights and buffers, to tell whether models began alike."""
    made = hashlib.sha256()
    for name, value in model.state_dict().items():
        made.update(name.encode())
        if isinstance(value, torch.Tensor):
            made.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]


def _other_weights(name: str, seed: int) -> str:
    return (
        f"build gave arm '{name}' other initial weights than the arm before it, with the same seed {seed}; draw them "
        "from torch's, numpy's or Python's own generators only"
    )


def held_rate(step: int, total_steps: int, end: str = "60%") -> float:
    """The share of the learning rate at a step: 1 until `end` of training, then half a cosine to 0.

    For `LambdaLR(optimizer, lambda step: held_rate(step, total_steps))`: events up to `end` all see the same rate.
    """
    hold = total_steps * float(end.removesuffix("%")) / 100
    if step <= hold:
        return 1.0
    return 0.5 * (1 + float(np.cos(np.pi * min((step - hold) / max(total_steps - hold, 1), 1.0))))
