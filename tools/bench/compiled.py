#!/usr/bin/env python3
"""A whole schedule compiled beside eager, on torchvision models: graphs made, graphs promised, and how losses differ.

tools/bench/compiled.py                         ResNet-18 and MobileNetV2 with Inductor, as Markdown
tools/bench/compiled.py --backend aot_eager     without its kernels, in a fraction of the time

Promised is a graph for each state of what is on, off or observing, as an eager run counts them. Losses of
float nets differ too, since Inductor adds in another order: the row above tells by how much.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch._dynamo.utils import counters

import fxcompress as fxc
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

SPEC = "P0.5(w,f) -> Q8(w,f)"
STEPS = 20
BATCH, SIDE, RATE = 32, 32, 1e-4


def train(name: str, spec: str | None, backend: str | None) -> tuple[list[float], int]:
    """The losses of each step, and how many states the net had."""
    torch.manual_seed(0)
    net: Any = torchvision.models.get_model(name, weights=None, num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    states = set[tuple[Any, ...]]()
    if spec is not None:
        example = torch.randn(BATCH, 3, SIDE, SIDE)
        net = fxc.compress(net, spec, example, total_steps=STEPS, optimizer=optimizer)
    run: Any = net if backend is None else torch.compile(net, backend=backend, fullgraph=True)
    torch.manual_seed(1)
    losses = []
    for _ in range(STEPS):
        states.add(tuple(m.flags for m in net.modules() if isinstance(m, (Pruner, Quantizer))))
        optimizer.zero_grad()
        loss = F.cross_entropy(run(torch.randn(BATCH, 3, SIDE, SIDE)), torch.randint(0, 10, (BATCH,)))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, len(states)


def row(name: str, spec: str | None, backend: str) -> str:
    """Eager, then compiled from a clean start."""
    eager, promised = train(name, spec, None)
    torch._dynamo.reset()
    counters.clear()
    start = time.perf_counter()
    compiled, _ = train(name, spec, backend)
    taken = time.perf_counter() - start
    made = counters["stats"]["unique_graphs"]
    breaks = sum(counters["graph_break"].values())
    gaps = [abs(a - b) for a, b in zip(eager, compiled, strict=True)]
    return (
        f"| {name} | {spec or 'float'} | {made} | {promised} | {breaks} | {max(gaps):.1e} | {gaps[-1]:.1e} "
        f"| {eager[-1]:.3f} | {taken:.0f} |"
    )


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"], help="torchvision models")
    parser.add_argument("--backend", default="inductor")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "| model | spec | graphs | promised | breaks | largest gap of losses | last gap | last loss | compiled run, s |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in given.models:
        for spec in (None, SPEC):
            print(row(name, spec, given.backend), flush=True)


if __name__ == "__main__":
    main()
