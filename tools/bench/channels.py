#!/usr/bin/env python3
"""A residual network for CIFAR-10 with half of its MACs and 8 bits: ours beside Torch-Pruning followed by torch.ao.

tools/bench/channels.py --data-root DATA --work WORK [--epochs 3] [--seeds 0 1]

All arms start from the same weights and see the same batches for the same number of steps: the float network, ours
(one training through a schedule with `shrink` on the way, then ONNX Runtime), and Torch-Pruning by group magnitude,
then torch.ao's quantization-aware training for the last steps. The two that compress learn from the trained float
network's answers as well as from labels. WORK gets an environment for the peer and every measured arm. Prints the table
as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from accuracy_parts.environments import TORCH, answer_of, python_with

ARMS = {"float": None, "ours": None, "Torch-Pruning, torch.ao": (TORCH, "torch-pruning==1.6.1", "numpy", "pillow")}


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and results")
    parser.add_argument("--model", default="resnet20", choices=["resnet20", "resnet56"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    jobs = [
        {"arm": arm, "seed": seed, "epochs": options.epochs, "model": options.model,
         "folder": str(options.work.resolve() / "channels"),
         "data_root": str(options.data_root.resolve())}
        for arm in options.arms for seed in options.seeds
    ]  # fmt: skip
    print(_markdown([_measured(job, options.work.resolve()) for job in jobs]))


def _measured(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """An arm's figures: from an earlier run, or from a process in its environment, or why there are none."""
    folder = work / "channels"
    folder.mkdir(parents=True, exist_ok=True)
    arm = "".join(c if c.isalnum() else "-" for c in job["arm"])
    answer = folder / f"{job['model']}-{arm}-{job['epochs']}-{job['seed']}.json"
    packages = ARMS[job["arm"]]
    return answer_of(
        "channels_parts.worker", job, answer, lambda: python_with(packages, work / arm) if packages else sys.executable
    )


def _markdown(cells: list[dict[str, Any]]) -> str:
    head = ("model", "arm", "seed", "epochs", "MACs left", "parameters left", "accuracy, 8 bits", "before 8 bits")
    rows = [head, ("---",) * len(head)]
    for cell in cells:
        start = (cell["model"], cell["arm"], str(cell["seed"]), str(cell["epochs"]))
        if "skipped" in cell:
            rows.append((*start, "–", "–", "–", f"not measured: {cell['skipped']}"))
            continue
        eight = f"{cell['accuracy']:.2f} %" if cell["arm"] != "float" else "–"
        rows.append(
            (*start, f"{cell['macs']:.3f}", f"{cell['parameters']:.3f}", eight, f"{cell['float_accuracy']:.2f} %")
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
