#!/usr/bin/env python3
"""Seconds of a training step with everything on over those of a float step: ours beside what others train with.

tools/bench/train_peers.py --work WORK [--models resnet18] [--peers fxcompress NNCF] [--rounds 20]

WORK gets an environment for each peer. Each peer's net is in a process of its own there, which stays: round by round
every one is asked for a float step and a compressed step. The figure is the median over the rounds of the ratio within
a process's turn, since environments have different versions of torch. A peer that cannot be installed or run is left
out with the reason. int8, SGD with momentum, 32 images of 32 x 32.

Prints a Markdown table; `--out` writes all seconds and what the machine is as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from accuracy_parts.environments import python_with
from train_peers_parts.asked import Asked
from train_peers_parts.peers import MODULES, PACKAGES

MODELS = ("resnet18", "mobilenet_v2")
UNCOUNTED = 1
"""Rounds at the start, written but not counted: a process that waited for the others to start is slow at first."""
KINDS = ("float", "compressed")


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and the workers' logs")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=[*MODELS, "resnet18_cifar"])
    parser.add_argument("--peers", nargs="+", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu counts a process's own time, with one thread"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()
    rows = [row for model in options.models for row in _measured(model, options)]
    print(_markdown(rows))
    if options.out:
        machine = {"cpu": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability(),
                   "cores": os.cpu_count(), "threads": options.threads,
                   "clock": options.clock, "load_before": load_before, "load_after": os.getloadavg(),
                   "python": platform.python_version()}  # fmt: skip
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _measured(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each peer, with its workers alive together and asked in turn."""
    rows: list[dict[str, Any]] = [{"model": model, "peer": peer} for peer in options.peers]
    asked: dict[str, Asked] = {}
    for row in rows:
        try:
            asked[row["peer"]] = _start(model, row["peer"], options)
        except RuntimeError as error:
            row["skipped"] = str(error)
            continue
        row |= {**asked[row["peer"]].about, **{f"{kind} seconds": [] for kind in KINDS}}
    for turn in range(UNCOUNTED + options.rounds):
        for row in (r for r in rows if "skipped" not in r):
            _take_turn(row, asked[row["peer"]], KINDS if turn % 2 else KINDS[::-1])
        print(f"{model}: round {turn + 1} of {UNCOUNTED + options.rounds}", file=sys.stderr)
    for worker in asked.values():
        worker.end()
    return [row if "skipped" in row else row | _figures(row) for row in rows]


def _start(model: str, peer: str, options: argparse.Namespace) -> Asked:
    name = "".join(c if c.isalnum() else "-" for c in peer.lower())
    work = options.work.resolve()
    python = python_with(PACKAGES[peer], work / name) if peer in PACKAGES else sys.executable
    return Asked(python, work / f"{name}-{model}.log", [peer, model, str(options.threads), options.clock])


def _take_turn(row: dict[str, Any], worker: Asked, kinds: tuple[str, ...]) -> None:
    try:
        seconds = {kind: worker.seconds(kind) for kind in kinds}
    except RuntimeError as error:
        row["skipped"] = str(error)
        return
    for kind, spent in seconds.items():
        row[f"{kind} seconds"].append(spent)


def _figures(row: dict[str, Any]) -> dict[str, float]:
    without, with_all = (row[f"{kind} seconds"][UNCOUNTED:] for kind in KINDS)
    ratios = [b / a for a, b in zip(without, with_all, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
            "float_ms": 1e3 * statistics.median(without)}  # fmt: skip


def _markdown(rows: list[dict[str, Any]]) -> str:
    head = ("model", "peer", "to float", "lowest to highest", "float, ms", "quantizers", "pruners", "what it does",
            "version", "torch")  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ("---",) * len(head), *map(_cells, rows)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "skipped" in row:
        return (row["model"], row["peer"], *"–––––", f"not measured: {row['skipped']}", "–", "–")
    return (row["model"], row["peer"], f"{row['ratio']:.2f}", f"{row['lowest']:.2f} to {row['highest']:.2f}",
            f"{row['float_ms']:.1f}", str(row["quantizers"]), str(row["pruners"]), row["does"], row["version"],
            row["torch"])  # fmt: skip


if __name__ == "__main__":
    main()
