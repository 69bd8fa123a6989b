"""The command line of every task: train what is missing, and print the tables of all that is there."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxcompress.json_lines import Store
from paper_parts.arms import KINDS, arms_of
from paper_parts.deploy import deployed
from paper_parts.processes import join, rank, world
from paper_parts.tables import markdown
from paper_parts.task import Setting, Task
from paper_parts.training import Training

HELP = """{doc}

Goes on where it was: WORK keeps a checkpoint of the training in progress and a JSON line for each that ended. With
--minutes it stops by then (exit code 3 while something is left), so that long tables can be made in pieces. `torchrun
--nproc-per-node 8` trains on so many devices. Prints the tables as Markdown."""
UNFINISHED = 3


@dataclass(frozen=True)
class Job:
    """One training that a table needs."""

    kind: str
    arm: str
    spec: Path | None
    seed: int

    def key(self, task: Task, budget: str) -> dict[str, Any]:
        """What its record is found by."""
        text = None if self.spec is None else self.spec.read_text()
        return {
            "task": task.name, "budget": budget, "kind": self.kind, "arm": self.arm, "seed": self.seed, "spec": text,
            "total_steps": task.total_steps,
        }  # fmt: skip


def run(kind: type[Task], doc: str) -> int:
    """Do what the command line asks for."""
    options = _options(kind, doc)
    torch.set_num_threads(options.threads)
    device = join(options.device)
    # Arms of a seed are to differ by their specs alone.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    try:
        task = kind(Setting(options.budget, options.data_root, device, options.features))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    task.steps_per_epoch = -(-task.steps_per_epoch // world())
    store = Store(options.work / f"{task.name}-{options.budget}.jsonl")
    jobs = [
        Job(k, arm, spec, seed)
        for seed in options.seed for k in options.kind for arm, spec in arms_of(task.name, k).items()
        if not options.arm or arm in options.arm
    ]  # fmt: skip
    deadline = time.monotonic() + 60 * options.minutes
    for job in jobs:
        if store.find(job.key(task, options.budget)):
            continue
        record = _trained(task, job, options, torch.device(device), deadline)
        if record is None:
            print(f"out of time in '{job.arm}' ({job.kind}, seed {job.seed}); call again to go on")
            return UNFINISHED
        if rank() == 0:
            store.add({**job.key(task, options.budget), **record})
    if rank() == 0:
        print(markdown(task, store.records, options.work))
    return 0


def _trained(
    task: Task, job: Job, options: argparse.Namespace, device: torch.device, deadline: float
) -> dict[str, Any] | None:
    name = "-".join([task.name, options.budget, job.kind, job.spec.stem if job.spec else "float", str(job.seed)])
    training = Training(task, job.spec, job.kind, job.seed, options.work / f"{name}.pt", device, options.amp)
    if not training.until(deadline):
        return None
    if rank():
        return {}
    runs = dict(training.parts.nets)
    metrics = task.evaluate(training.parts, runs)
    first = next(iter(training.parts.nets))
    for number, picture in enumerate(task.pictures(runs[first])):
        picture.save(options.work / f"{name}-{number}.png")
    found = deployed(training, options.work / name)
    if task.higher_is_better:
        found["density"] = metrics[task.metric] / found["megabits"]
    training.file.unlink()
    return {
        "metric": metrics[task.metric], "metrics": metrics, "rates": training.rates, "weights": training.digest,
        "seconds": round(training.seconds, 1), **found,
    }  # fmt: skip


def _options(kind: type[Task], doc: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=HELP.format(doc=doc), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder of the data; without it data are made up")
    parser.add_argument(
        "--features", type=Path, help="feature network of FID, an ONNX file; see tools/paper/features.py"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, files and results")
    parser.add_argument("--budget", choices=kind.budgets, default="cpu")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="the paper's times, or matched")
    parser.add_argument("--arm", nargs="+", choices=list(arms_of(kind.name, "paper")), help="only these")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop by then")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="several of them by torchrun")
    parser.add_argument("--amp", action="store_true", help="train in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    return options
