#!/usr/bin/env python3
"""Seconds and memory of a training step: float, ours before its first event and with everything on, compiled or not.

Time: in one process the kinds take turns, a step each; the figure is the median of the steps, and a ratio is the
median of the ratios within a turn, which other work on the machine moves least. `--clock cpu` counts the processor's
time, which other processes do not take part in; it wants one thread.

Memory (`--memory`): a process for each kind, from making the model to the last event and some steps on. `tensors` is
the most that tensors held at once, by torch's profiler, or on a GPU by its allocator; `process` the most that the
process ever held (`ru_maxrss`) over what it held before, with what Python and the allocator keep.

`--device cuda` trains on a GPU, where the clock is read once all work is done, and `--amp` with bfloat16 where autocast
sees fit. A GPU wants a larger `--batch`.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fxcompress as fxc

SPEC = "P0.5(w,f) -> Q8(w,f)"
STEPS = 20
WARM_UP = 3
KINDS = ("float", "before", "on", "float compiled", "on compiled", "torch.ao")
MODELS = {"resnet18": (32, 32), "resnet18_cifar": (32, 32), "mobilenet_v2": (32, 32), "vit_tiny": (8, 224)}
"""Batch and side of the images. `resnet18_cifar` has the stem that is usual for small images: no stride, no pooling."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--batch", type=int, help="images in a batch instead of the model's own number")
    parser.add_argument("--memory", choices=["tensors", "process"], help="peak memory instead of time")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and (options.clock == "cpu" or options.memory == "process"):
        parser.error("--clock cpu and --memory process do not see what a GPU does; use wall and tensors")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.one:
        by_tensors = _held_on_gpu if options.device == "cuda" else _held_by_tensors
        held = by_tensors if options.memory == "tensors" else _held
        print(json.dumps(held(options.models[0], options.kinds[0], options)))
        return
    measure = _memory if options.memory else _time
    rows = [row for name in options.models for row in measure(name, options)]
    print(_table(rows, "MiB" if options.memory else "ms"))
    if options.out:
        options.out.write_text(json.dumps({"machine": _machine(options), "rows": rows}, indent=2) + "\n")


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    return {"cpu": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability(), "gpu": gpu,
            "amp": options.amp, "batch": options.batch, "threads": options.threads, "clock": options.clock,
            "torch": torch.__version__}  # fmt: skip


def _time(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    steps = {kind: step for kind in options.kinds if (step := _ready(name, kind, options))}
    spent: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(WARM_UP + options.turns):
        for kind, step in steps.items():
            start = _now(options)
            step()
            taken = _now(options) - start
            if turn >= WARM_UP:
                spent[kind].append(taken)
    return [_row(name, kind, 1e3 * statistics.median(times), times, spent) for kind, times in spent.items()]


def _now(options: argparse.Namespace) -> float:
    """The clock, once a GPU has done all that it was given."""
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if options.clock == "cpu" else time.perf_counter()


def _row(name: str, kind: str, value: float, values: list[float], of_all: dict[str, list[float]]) -> dict[str, Any]:
    base = of_all.get("float compiled" if kind.endswith("compiled") else "float", values)
    ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
    return {"model": name, "kind": kind, "value": value, "ratio": ratio}


def _memory(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {}
    for kind in options.kinds:
        command = [sys.executable, __file__, "--one", "--models", name, "--kinds", kind,
                   "--threads", str(options.threads), "--memory", options.memory, "--device", options.device,
                   *(["--amp"] if options.amp else []),
                   *(["--batch", str(options.batch)] if options.batch else [])]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        held = json.loads(done.stdout.splitlines()[-1])
        found |= {kind: [held]} if held else {}
    return [_row(name, kind, held, [held], found) for kind, [held] in found.items()]


def _held(name: str, kind: str, options: argparse.Namespace) -> float:
    """MiB at most over what there was before."""
    _warm_up(options)
    before = _most()
    _train(name, kind, options)
    return (_most() - before) / 1024


def _held_on_gpu(name: str, kind: str, options: argparse.Namespace) -> float:
    """MiB of a GPU's tensors at most at once, over those there were before."""
    _warm_up(options)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    is_made = _train(name, kind, options)
    return (torch.cuda.max_memory_allocated() - before) / 2**20 if is_made else 0.0


def _held_by_tensors(name: str, kind: str, options: argparse.Namespace) -> float:
    """MiB of tensors at most at once."""
    _warm_up(options)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        is_made = _train(name, kind, options)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(accumulate(sizes)) / 2**20 if is_made else 0.0


def _train(name: str, kind: str, options: argparse.Namespace) -> bool:
    """All steps of a measurement of memory; whether they could be made."""
    step = _ready(name, kind, options)
    for _ in range(WARM_UP if step else 0):
        step()  # type: ignore[misc]
    return step is not None


def _warm_up(options: argparse.Namespace) -> None:
    """Load and make what is loaded and made once, with a net that is nearly nothing."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Linear(4, 4)
    image = torch.randn(2, 3, 8, 8, device=options.device)
    net = fxc.compress(nn.Sequential(*layers).to(options.device), SPEC, image, total_steps=10)
    for _ in range(10):
        net(image).sum().backward()
        net.schedule.step()


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _ready(name: str, kind: str, options: argparse.Namespace) -> Callable[[], None] | None:
    """A step of this kind at the place in training that it is measured at; None where it cannot be made."""
    images, labels = _data(name, options)
    model: Any = _model(name).to(options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    if kind == "torch.ao":
        model = _by_torch(model, images)
        if model is None:
            return None
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    elif kind.startswith(("before", "on")):
        net = model = fxc.compress(model, SPEC, images, total_steps=STEPS, optimizer=optimizer)

    def step(run: Any) -> None:
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.amp):
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    if kind == "before":
        _hold(net)
    while kind.startswith("on") and net.schedule.pending():
        step(net)
    measured = partial(step, torch.compile(model) if kind.endswith("compiled") else model)
    measured()
    return measured


def _data(name: str, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of images and their labels, on the device; the same whatever the device."""
    batch, side = MODELS[name]
    batch = options.batch or batch
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))
    return images.to(options.device), labels.to(options.device)


def _hold(net: Any) -> None:
    """Hold the schedule where nothing has started and nothing observes."""
    net.schedule._advance = lambda: None
    for module in net.modules():
        if hasattr(module, "observing"):
            module.observing = False


def _model(name: str) -> nn.Module:
    if name == "vit_tiny":
        import timm

        return timm.create_model("vit_tiny_patch16_224", num_classes=10).train()  # type: ignore[no-any-return]
    net: Any = torchvision.models.get_model(name.removesuffix("_cifar"), weights=None, num_classes=10)
    if name.endswith("_cifar"):
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net.train()  # type: ignore[no-any-return]


def _by_torch(model: nn.Module, images: torch.Tensor) -> nn.Module | None:
    try:
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        return prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (images,))
    except Exception as error:
        print(f"torch.ao cannot: {error}", file=sys.stderr)
        return None


def _table(rows: list[dict[str, Any]], unit: str) -> str:
    lines = [f"| model | kind | {unit} | to float |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r['model']} | {r['kind']} | {r['value']:.1f} | {r['ratio']:.2f} |" for r in rows)])


if __name__ == "__main__":
    main()
