"""Measure one cell of the table in the environment that runs this: -m accuracy_parts.worker JOB.json OUT.json."""

from __future__ import annotations

import copy
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accuracy_parts.data import Task, load_task
from accuracy_parts.models import load_model
from accuracy_parts.training import RECIPES, Work, figures, logits_of, set_threads

MODULES = {
    "float": "peer_float",
    "ours": "ours",
    "torch.ao": "peer_torchao",
    "NNCF": "peer_nncf",
    "ONNX Runtime": "peer_onnxruntime",
}


def main() -> None:
    """Read the job, measure, write the answer."""
    job = json.loads(Path(sys.argv[1]).read_text())
    set_threads()
    torch.manual_seed(job["seed"])
    answer = measure(job)
    Path(sys.argv[2]).write_text(json.dumps(answer, indent=2) + "\n")


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Quantize, then compare with labels and float logits, in torch and in ONNX Runtime."""
    root, folder = Path(job["data_root"]), Path(job["folder"])
    method = importlib.import_module(f"accuracy_parts.{MODULES[job['method']]}")
    work = Work(job["model"], job["bits"], job["edge_bits"], job["seed"], RECIPES[job["model"]])
    task, model = load_task(work.model, root), load_model(work.model, root)
    images, labels = task.select if job["part"] == "select" else task.test
    reference = _reference(model, images, task, folder / f"{work.model}-{job['part']}.pt")
    start = time.perf_counter()
    net = method.quantize(copy.deepcopy(model), model, task, work, job["settings"])
    answer: dict[str, Any] = {**job, "seconds": time.perf_counter() - start, "versions": method.versions()}
    if isinstance(net, nn.Module):
        answer["torch"] = figures(logits_of(net, images, task), reference, labels, task.classes).as_dict()
    try:
        file = folder / f"{work.model}-{job['method'].replace(' ', '')}-{work.bits}-{job['seed']}.onnx"
        answer["export"] = method.export(net, file, task)
        answer["runtime"] = figures(_in_runtime(file, images, task), reference, labels, task.classes).as_dict()
    except Exception as error:
        answer["export"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return answer


def _reference(model: nn.Module, images: Tensor, task: Task, cache: Path) -> Tensor:
    """The float model's logits, computed once for all methods."""
    if cache.exists():
        return torch.load(cache, weights_only=True)  # type: ignore[no-any-return]
    logits = logits_of(model, images, task)
    torch.save(logits, cache)
    return logits


def _in_runtime(file: Path, images: Tensor, task: Task) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return logits_of(lambda x: torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0]), images, task)


if __name__ == "__main__":
    main()
