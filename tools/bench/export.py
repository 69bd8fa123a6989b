#!/usr/bin/env python3
"""Time and peak memory of exporting and verifying, in exports of the float model with one run of its file.

tools/bench/export.py                        ResNet-18 and MobileNetV2, as Markdown
tools/bench/export.py --models resnet50 --rounds 5

Both write a free batch axis. Times are of the processor, which other work on the machine moves less; each peak is the
resident memory of a process of its own above what it held before.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import onnxruntime as ort
import torch
import torchvision
from torch import nn

import fxcompress as fxc

SPECS = {"8 bits": "Q8(w,f)@0", "8 bits, half of both pruned": "P0.5(w,f)@0..1 -> Q8(w,f)@1"}
STEPS = 3
FLOAT = "float"


def export_float(model: nn.Module, x: torch.Tensor, file: Path) -> None:
    """What a user of PyTorch alone would do: export, and run once."""
    free = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=free)
    assert program is not None
    program.save(file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: x.numpy()})


def compressed(model: nn.Module, spec: str, x: torch.Tensor) -> fxc.CompressedModule:
    """A net past its events."""
    net = fxc.compress(copy.deepcopy(model).train(), spec, x)
    for _ in range(STEPS):
        net(x)
        net.schedule.step()
    return net.eval()


def seconds(model: nn.Module, x: torch.Tensor, net: fxc.CompressedModule | None) -> float:
    """Of the processor, for either export: of the float model where there is no net."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        if net is None:
            export_float(model, x, Path(folder) / "float.onnx")
        else:
            fxc.export_onnx(net, Path(folder) / "net.onnx")
        return time.process_time() - start


def peak(name: str, spec: str | None) -> float:
    """Megabytes that one export adds to what this process holds at its most; called in a process of its own."""
    model, x = example(name)
    net = None if spec is None else compressed(model, spec, x)
    before = most()
    seconds(model, x, net)
    return (most() - before) / 1024


def most() -> int:
    """Kilobytes that this process held at most. What getrusage says begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def example(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A torchvision model, and two images for it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return torchvision.models.get_model(name, weights=None).eval(), torch.rand(2, 3, 224, 224)


def rows(name: str, rounds: int) -> list[str]:
    """A row for the float model and each spec: medians of turns, and the middle of the turns' own ratios."""
    model, x = example(name)
    nets = {FLOAT: None} | {what: compressed(model, spec, x) for what, spec in SPECS.items()}
    turns = [{what: seconds(model, x, net) for what, net in nets.items()} for _ in range(rounds + 1)]
    times = {what: [turn[what] for turn in turns[1:]] for what in nets}  # the first turn imports
    found = []
    for what, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times[FLOAT], strict=True))
        with multiprocessing.get_context("spawn").Pool(1) as process:
            memory = process.apply(peak, (name, SPECS.get(what)))
        found.append(f"| {name} | {what} | {statistics.median(taken):.2f} | {ratio:.2f} | {memory:.0f} |")
    return found


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"], help="torchvision models")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print("| model | file | export and verify, s | / float | peak above, MB |\n| --- | --- | ---: | ---: | ---: |")
    for name in given.models:
        print("\n".join(rows(name, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
