#!/usr/bin/env python3
"""Which order is best: matched arms beside the paper's unmatched ones, and a search, on three small tasks.

tools/paper/order.py --task digits --work WORK [--seeds 5]
tools/paper/order.py --task cifar --task espcn --data-root DATA --work WORK
tools/paper/order.py --task digits --work WORK --search 30

Matched arms share total steps, the window of their events, recovery, and the learning rate, which is held until the
window ends. Unmatched arms have the paper's times and half a cosine. WORK gets a JSON line for each training, so that a
run that was cut off goes on, and the pictures. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tasks import Task, load_task

import fxcompress as fxc
from fxcompress.paired import interval

ORDERS = {"P(w,f) -> Q(w,f)": "P0.5(w,f) -> Q8(w,f)", "Q(w,f) -> P(w,f)": "Q8(w,f) -> P0.5(w,f)"}


def main() -> None:
    """Measure the tasks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=["digits", "cifar", "espcn"], required=True)
    parser.add_argument("--data-root", type=Path, help="folder of CIFAR-10, T91 and Set5")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="optimizer steps of a training, by default the task's own")
    parser.add_argument("--search", type=int, help="trials of a search instead, compared on seeds that it did not see")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.task:
        task = load_task(name, options.data_root, options.steps)
        (searched if options.search else compared)(task, options)


def compared(task: Task, options: argparse.Namespace) -> None:
    """Both tables of a task."""
    seeds = range(options.seeds)
    held = task.sized({**fxc.matched_arms(ORDERS), "all at once": fxc.at_once("P0.5(w,f) -> Q8(w,f)")})
    tables: list[tuple[str, dict[str, Any], Callable[[int, int], float], bool]] = [
        ("matched", {"float": None, **held}, fxc.held_rate, True),
        ("paper", {"float": None, **task.sized(fxc.paper_arms(task.published))}, _cosine, False),
    ]
    for kind, arms, rate, matched in tables:
        found = fxc.compare(
            arms, task.build, task.trainer(rate), task.evaluate, example_inputs=task.example_inputs,
            total_steps=task.total_steps, seeds=seeds, matched=matched,
            store=options.work / f"{task.name}-{kind}.jsonl",
        )  # fmt: skip
        found.picture(options.work / f"{task.name}-{kind}.svg", task.metric)
        print(f"\n### {task.name}, {kind}: {task.metric}, {task.total_steps} steps\n\n{found.markdown()}", flush=True)


def searched(task: Task, options: argparse.Namespace) -> None:
    """The best of a search and of as many random trials, against the better fixed order, on held-out seeds."""
    space, held_out = fxc.Space("P0.5(w,f) -> Q8(w,f)", end="60%"), range(100, 100 + options.seeds)
    arms: dict[str, Any] = fxc.matched_arms(ORDERS)
    for sampler in ("tpe", "random"):
        found = fxc.search(
            space, task.build, task.trainer(fxc.held_rate), task.evaluate, example_inputs=task.example_inputs,
            total_steps=task.total_steps, trials=options.search, sampler=sampler, seeds=(0, 1),
            storage=options.work / f"{task.name}-{sampler}.journal",
        )  # fmt: skip
        found.write(options.work / f"{task.name}-{sampler}")
        print(f"\n{sampler}: {found.trials[0].values[0]:.4f} in the search; importance {found.importance}", flush=True)
        arms[f"best of {options.search}, {sampler}"] = found.best
    result = fxc.compare(
        task.sized(arms), task.build, task.trainer(fxc.held_rate), task.evaluate, example_inputs=task.example_inputs,
        total_steps=task.total_steps, seeds=held_out, matched=False, store=options.work / f"{task.name}-search.jsonl",
    )  # fmt: skip
    fixed = max(ORDERS, key=lambda name: sum(result.metrics[name].values()))
    print(f"\n### {task.name}, searched, on held-out seeds: {task.metric}\n\n{result.markdown()}")
    for name in list(arms)[-2:]:
        pairs = [result.metrics[name][s] - result.metrics[fixed][s] for s in held_out]
        print(f"\n{interval(name, fixed, pairs)}")


def _cosine(step: int, total_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
