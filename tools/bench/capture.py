#!/usr/bin/env python3
"""Time of `compress` (capture and all passes) in forward passes of large models, and over the size of generated graphs.

tools/bench/capture.py                 both, as Markdown
tools/bench/capture.py --models resnet152 swin_b
tools/bench/capture.py --graphs
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import fxcompress as fxc

SPEC = "P0.5(w,f) -> Q8(w,f)"
SIZES = (100, 300, 1000, 3000, 10000)


class DenseBlock(nn.Module):
    """Sixteen convolutions, each on all that came before."""

    def __init__(self, layers: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2 * (i + 1), 2, 1) for i in range(layers))
        self.last = nn.Conv2d(2 * (layers + 1), 2, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        features = [x]
        for layer in self.layers:
            features.append(torch.relu(layer(torch.cat(features, 1))))
        return self.last(torch.cat(features, 1))


def chain(nodes: int) -> tuple[nn.Module, Tensor]:
    """Linear layers and ReLUs, one after another."""
    return nn.Sequential(*(m for _ in range(nodes // 2) for m in (nn.Linear(8, 8), nn.ReLU()))), torch.randn(2, 8)


def dense(nodes: int) -> tuple[nn.Module, Tensor]:
    """Dense blocks, one after another."""
    return nn.Sequential(*(DenseBlock() for _ in range(max(1, nodes // 50)))), torch.randn(2, 2, 4, 4)


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_model(name: str, rounds: int, batch: int) -> str:
    """One row: forward and compress in turn, medians, and their ratio."""
    model, x = torchvision.models.get_model(name, weights=None), torch.rand(batch, 3, 224, 224)
    with torch.no_grad():
        model.eval()(x)
    forwards, captures = [], []
    for _ in range(rounds):
        with torch.no_grad():
            forwards.append(seconds(lambda: model.eval()(x)))
        captures.append(seconds(lambda: fxc.compress(model.train(), SPEC, x, total_steps=100)))
    forward, capture = statistics.median(forwards), statistics.median(captures)
    return f"| {name} | {forward:.2f} | {capture:.2f} | {capture / forward:.1f} |"


def time_graphs(make: Callable[[int], tuple[nn.Module, Tensor]]) -> list[str]:
    """A row for each size, then the slope of log time over log size."""
    points, rows = [], []
    for nodes in SIZES:
        model, x = make(nodes)
        nets: list[Any] = []
        taken = seconds(lambda: nets.append(fxc.compress(model, SPEC, x, total_steps=100)))  # noqa: B023
        size = sum(1 + len(n.all_input_nodes) for graph in nets[0].graphs for n in graph.nodes)
        points.append((math.log(size), math.log(taken)))
        rows.append(f"| {make.__name__} | {size:,} | {taken:.2f} |")
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    return [*rows, f"| {make.__name__} | slope | {slope:.2f} |"]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="torchvision models (default: resnet152 swin_b convnext_base)")
    parser.add_argument("--graphs", action="store_true", help="generated graphs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of forward and compress in turn")
    parser.add_argument("--batch", type=int, default=1, help="images of a forward pass")
    given = parser.parse_args()
    both = given.models is None and not given.graphs
    fxc.compress(*chain(100)[:1], SPEC, torch.randn(2, 8), total_steps=100)  # the first call imports
    if both or given.models is not None:
        print("| model | forward, s | compress, s | compress / forward |\n|---|---|---|---|")
        for name in given.models or ("resnet152", "swin_b", "convnext_base"):
            print(time_model(name, given.rounds, given.batch), flush=True)
    if both or given.graphs:
        print("\n| graph | nodes and edges | compress, s |\n|---|---|---|")
        for make in (chain, dense):
            print("\n".join(time_graphs(make)), flush=True)


if __name__ == "__main__":
    main()
