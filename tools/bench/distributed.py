#!/usr/bin/env python3
"""What events of a schedule cost between ranks: collectives, their bytes and their time, over gloo on this machine.

Trains a torchvision model with DDP and FSDP2 on random images through a whole schedule, on each number of ranks.
Times are medians over the events of a kind, of the slowest rank; ranks wait for each other before each, so that what is
timed is the event and not the training. The last column is one all-reduce of all gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fxcompress as fxc

STEPS = 20
COLUMNS = ("ranks", "how", "after", "collectives", "bytes", "ms in them", "ms of the event", "ms of all gradients")


def main() -> None:
    """Run each number of ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--how", nargs="+", default=["ddp", "fsdp"], choices=["ddp", "fsdp"])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--spec", default="P0.5(w,f) -> Q8(w,f)")
    parser.add_argument("--size", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--out", type=Path, required=True, help="file for the figures, one line of JSON an event")
    options = parser.parse_args()
    if "RANK" in os.environ:
        _be_a_rank(options)
        return
    options.out.unlink(missing_ok=True)
    for ranks in options.ranks:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{ranks}"]
        subprocess.run([*command, *sys.argv], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    print(_table([json.loads(line) for line in options.out.read_text().splitlines()]))


def _be_a_rank(options: argparse.Namespace) -> None:
    dist.init_process_group("gloo")
    rows = [row for how in options.how for _ in range(options.rounds) for row in _events(how, options)]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, rows)
    if dist.get_rank() == 0:
        with options.out.open("a") as file:
            for same in zip(*every, strict=True):
                slowest = {key: max(row[key] for row in same) for key in ("in_them", "event", "gradients")}
                file.write(json.dumps({**same[0], **slowest}) + "\n")
    dist.destroy_process_group()


def _events(how: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each step of a training."""
    torch.manual_seed(0)
    # Batch norms keep their statistics: SyncBatchNorm computes on GPUs only.
    model = torchvision.models.get_model(options.model, weights=None).eval()
    images, labels = torch.randn(2, 3, options.size, options.size), torch.randint(1000, (2,))
    net = fxc.compress(model, options.spec, images, total_steps=STEPS)
    for module in net.get_submodule("compression").modules():
        module.train()
    net.training = True
    gradients = torch.zeros(sum(p.numel() for p in net.parameters()))
    if how == "fsdp":
        fully_shard(net)
    wrapped: Any = DistributedDataParallel(net) if how == "ddp" else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
        dist.barrier()
        calls: list[tuple[int, float]] = []
        with _watched(calls):
            event = _seconds(net.schedule.step)
        dist.barrier()
        yield {
            "ranks": dist.get_world_size(),
            "how": how,
            "step": step,
            "after": _what(net, step),
            "collectives": len(calls),
            "bytes": sum(size for size, _ in calls),
            "in_them": sum(seconds for _, seconds in calls),
            "event": event,
            "gradients": _seconds(lambda: dist.all_reduce(gradients)),
            "model": options.model,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }


def _what(net: Any, step: int) -> str:
    kinds = sorted({f"{event.action} {event.kind}s" for event in net.schedule.events if event.step == step})
    first = "the first step: the ranks meet" if step == 1 else ""
    return "; ".join([*([first] if first else []), *kinds]) or "no event"


def _seconds(does: Callable[[], Any]) -> float:
    start = time.perf_counter()
    does()
    return time.perf_counter() - start


@contextmanager
def _watched(calls: list[tuple[int, float]]) -> Iterator[None]:
    """Note bytes and seconds of every collective meanwhile; a gathered parameter counts whole."""
    places: list[tuple[Any, str]] = [(dist, "all_reduce"), (dist, "broadcast"), (DTensor, "full_tensor")]
    functions = [getattr(owner, name) for owner, name in places]

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = function(tensor, *args, **kwargs)
            calls.append((tensor.numel() * tensor.element_size(), time.perf_counter() - start))
            return found

        return call

    for (owner, name), function in zip(places, functions, strict=True):
        setattr(owner, name, noting(function))
    try:
        yield
    finally:
        for (owner, name), function in zip(places, functions, strict=True):
            setattr(owner, name, function)


def _table(rows: list[dict[str, Any]]) -> str:
    """Medians by ranks, way and event, as Markdown."""
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["ranks"], row["how"], row["after"]), []).append(row)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for key, same in kinds.items():
        counts = [f"{statistics.median_low(row[name] for row in same):,}" for name in ("collectives", "bytes")]
        times = [
            f"{statistics.median(row[name] for row in same) * 1e3:.1f}" for name in ("in_them", "event", "gradients")
        ]
        lines.append(f"| {' | '.join([*map(str, key), *counts, *times])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
