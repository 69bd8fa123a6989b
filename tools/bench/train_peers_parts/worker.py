"""A peer and a model in one process, which stays: -m train_peers_parts.worker PEER MODEL THREADS CLOCK.

It says what it is once it is ready, then reads "float" or "compressed" line by line and answers each with the seconds
of such a step. What libraries print goes to standard error.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

import torch

from train_peers_parts.models import MODELS
from train_peers_parts.peers import DISTRIBUTIONS, MODULES
from train_peers_parts.training import Step, random_batch, warmed


def main() -> None:
    """Get ready, then answer until there are no more questions."""
    peer, model, threads, clock = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    steps, about = _ready(peer, model)
    print(json.dumps(about), file=answers)
    for asked in sys.stdin:
        print(_seconds(steps[asked.strip()], clock), file=answers)


def _ready(peer: str, name: str) -> tuple[dict[str, Step], dict[str, Any]]:
    """Both steps from the same weights, and what is measured."""
    module = importlib.import_module(f"train_peers_parts.{MODULES[peer]}")
    batch = random_batch()
    model = MODELS[name]().train()
    floating = warmed(copy.deepcopy(model), batch)
    made = module.compressed(model, batch)
    if not made.quantizers:
        raise RuntimeError("nothing was quantized")
    about = {"does": module.DOES, "version": version(DISTRIBUTIONS[peer]), "torch": torch.__version__,
             "quantizers": made.quantizers, "pruners": made.pruners,
             "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}  # fmt: skip
    return {"float": floating, "compressed": made.step}, about


def _seconds(step: Step, clock: str) -> float:
    """Of the second of two steps: the first brings back to the caches what other workers put out of them."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    step()
    start = now()
    step()
    return now() - start


if __name__ == "__main__":
    main()
