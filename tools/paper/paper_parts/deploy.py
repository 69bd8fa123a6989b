"""What every arm ends with: files, whether a runtime agrees, how fast and large they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only, tree_structure, tree_unflatten

import fxcompress as fxc
from fxcompress.comparison import OFF, Verification
from fxcompress.report import report_of
from fxcompress.runtime import latencies, saturates, session
from paper_parts.task import Run, Task
from paper_parts.training import Training

RUNS = 21


def deployed(training: Training, folder: Path) -> dict[str, Any]:
    """Export every net, run the files in ONNX Runtime, and measure one input through each.

    Returns bytes of all files, their latency and its ratio to that of the float files (taking turns, one thread),
    `verified`, the smallest share of equal outputs, what is left in float, Mbit without zeros of one input as trained
    on, and the metrics of the files where they take the test data.

    Where ONNX Runtime's 8-bit kernels saturate on this processor, so that a file cannot be exact, it is judged and
    measured (but not timed) with optimizations off; `exact_kernels` says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task, nets = training.task, {name: net.cpu().eval() for name, net in training.parts.nets.items()}
    inputs = tree_map_only(torch.Tensor, lambda x: x.cpu(), task.exported())
    files = {name: folder / f"{name}.onnx" for name in nets}
    found: dict[str, Any] = {"exact_kernels": not saturates(), "verified": True, "equal": 1.0, "left_in_float": {}}
    plain = _float_files(task, inputs, folder)
    for name, net in nets.items():
        if isinstance(net, fxc.CompressedModule):
            _note(found, name, fxc.export_onnx(net, files[name], inputs[name]))
        else:
            _export_float(net, inputs[name], files[name])
    timed = {name: latencies([plain[name], files[name]], _feed(inputs[name]), RUNS, threads=1) for name in nets}
    found["file_bytes"] = sum(file.stat().st_size for file in files.values())
    found["float_file_bytes"] = sum(file.stat().st_size for file in plain.values())
    found["latency_ms"] = 1e3 * sum(t[1] for t in timed.values())
    found["latency_ratio"] = sum(t[1] for t in timed.values()) / sum(t[0] for t in timed.values())
    trained_on = tree_map_only(torch.Tensor, lambda x: x.cpu(), task.examples())
    found["megabits"] = sum(_megabits(net, trained_on[name]) for name, net in nets.items())
    if task.fits_files():
        runs = {name: in_runtime(file, nets[name], inputs[name]) for name, file in files.items()}
        found["in_runtime"] = task.evaluate(training.parts, runs)
    return found


def in_runtime(file: Path, net: nn.Module, example: Any) -> Run:
    """A file in the place of a network: inputs are laid flat for it, outputs put into the network's containers."""
    runtime = session(file, optimized=not saturates())
    names = [i.name for i in runtime.get_inputs()]
    with torch.no_grad():
        containers = tree_structure(net(example))

    def run(x: Any) -> Any:
        leaves = tree_leaves(x)
        feed = {name: y.detach().cpu().numpy() for name, y in zip(names, leaves, strict=True)}
        outputs = [torch.from_numpy(np.asarray(y)).to(leaves[0].device) for y in runtime.run(None, feed)]
        return tree_unflatten(outputs, containers)

    return run


def _note(found: dict[str, Any], name: str, verification: Verification) -> None:
    judged = [r for t in verification.tensors for r in t.runtimes if r.runtime == OFF]
    is_right = verification.ok if found["exact_kernels"] else not any(r.is_fault for r in judged)
    found["verified"] = found["verified"] and is_right
    equal = (o.equal[: 2 if found["exact_kernels"] else 1] for o in verification.outputs)
    found["equal"] = min([found["equal"], *(min(shares) for shares in equal)])
    if verification.float_operators:
        found["left_in_float"][name] = sorted(set(verification.float_operators))


def _float_files(task: Task, inputs: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The same networks with weights as at the start: how long they take does not depend on weights."""
    files = {}
    for name, net in task.build().nets.items():
        files[name] = folder / f"{name}-float.onnx"
        _export_float(net.eval(), inputs[name], files[name])
    return files


def _export_float(net: nn.Module, example: Any, file: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    args, shapes = (tree_map(lambda x: torch.cat([x, x]), example),), (tree_map(lambda _: {0: batch}, example),)
    torch.onnx.export(net, args, file, dynamo=True, verbose=False, external_data=False, dynamic_shapes=shapes)


def _feed(example: Any) -> dict[str, np.ndarray]:
    return {str(i): x.numpy() for i, x in enumerate(tree_leaves(example))}


def _megabits(net: nn.Module, example: Any) -> float:
    if not isinstance(net, fxc.CompressedModule):
        net = fxc.compress(net, "Q8(w,f)@1", example, total_steps=1)  # nothing has acted: all is counted with 32 bits
    return report_of(net).megabits()
