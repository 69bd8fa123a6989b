#!/usr/bin/env python3
"""Accuracy of real networks on real images: ours beside torch.ao, NNCF and ONNX Runtime's quantizer.

tools/bench/accuracy.py --data-root DATA --work WORK                  all of the table
tools/bench/accuracy.py --data-root DATA --work WORK --peers          ours and float only
tools/bench/accuracy.py --data-root DATA --work WORK --models resnet20 --bits 8 --part select

DATA holds the images and weights that docs/accuracy.md names. WORK gets an environment for each peer and every measured
cell, so that another run goes on where one stopped; delete WORK/cells to measure again. Prints the table as Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accuracy_parts.environments import PACKAGES, answer_of, python_of
from accuracy_parts.table import markdown
from accuracy_parts.training import RECIPES

OURS: dict[int, dict[str, Any]] = {
    8: {"weight_range": "mse", "activation_range": "mse", "correct_bias": True},
    4: {"weight_range": "mse", "activation_range": "mse", "scale": "learned"},
}
"""Chosen on the part `select`, which no method trains, calibrates or is tested on."""


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and results")
    parser.add_argument("--models", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4])
    parser.add_argument("--edge-bits", type=int, default=8, help="of first and last layer at least")
    parser.add_argument("--peers", nargs="*", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--part", choices=["test", "select"], default="test")
    options = parser.parse_args()
    cells = [
        measured({
            "method": method, "model": model, "bits": bits, "edge_bits": max(bits, options.edge_bits), "seed": seed,
            "part": options.part, "settings": OURS.get(bits, OURS[4]) if method == "ours" else {},
            "data_root": str(options.data_root.resolve()), "folder": str(options.work.resolve() / "cells"),
        })
        for model in options.models
        for bits in options.bits
        for method in ("float", "ours", *options.peers)
        for seed in (options.seeds if bits < 8 else options.seeds[:1])
        if method != "float" or bits == 8 or not RECIPES[model].distill  # the float model is its own teacher
    ]  # fmt: skip
    print(markdown(cells))


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """The cell of a job: from an earlier run or from a process in the method's environment, or why there is none."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(str(job[key]) for key in ("model", "method", "bits", "edge_bits", "part", "seed")).replace(" ", "")
    return answer_of(
        "accuracy_parts.worker", job, folder / f"{name}.json", lambda: python_of(job["method"], folder.parent)
    )


if __name__ == "__main__":
    main()
