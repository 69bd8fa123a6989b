"""Run one arm in the environment that runs this: -m channels_parts.worker JOB.json ANSWER.json."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from channels_parts.training import Training

MODULES = {"float": "arm_float", "ours": "arm_ours", "Torch-Pruning, torch.ao": "arm_peer"}


def main() -> None:
    """Read the job, train, write the answer."""
    job, answer = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    torch.manual_seed(job["seed"])
    start = time.perf_counter()
    found = importlib.import_module(f"channels_parts.{MODULES[job['arm']]}").run(Training(job))
    found |= {**job, "torch": torch.__version__, "seconds": time.perf_counter() - start}
    answer.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
