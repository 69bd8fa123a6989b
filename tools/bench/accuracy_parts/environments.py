"""A virtual environment for each peer, made once in a folder that the user names, and runs in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0+cpu"
PACKAGES = {
    "torch.ao": (TORCH, "numpy", "pillow"),
    "NNCF": (TORCH, "nncf==3.4.0", "torchao", "onnx", "onnxruntime==1.32.0", "pillow"),
    "ONNX Runtime": (TORCH, "onnx", "onnxruntime==1.32.0", "sympy", "pillow"),
}


def python_of(method: str, folder: Path) -> str:
    """The interpreter that runs a method: this one for ours and float, else one with what the peer needs.

    Raises RuntimeError with the last line of what venv or pip says if that cannot be made.
    """
    if method not in PACKAGES:
        return sys.executable
    return python_with(PACKAGES[method], folder.resolve() / method.replace(" ", "-").lower())


def python_with(packages: Sequence[str], home: Path) -> str:
    """The interpreter of an environment at `home` with these packages, made where there is none yet."""
    python, stamp = home / "bin/python", home / "installed.txt"
    wanted = "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])
        stamp.write_text(wanted)
    return str(python)


def answer_of(worker: str, job: dict[str, Any], answer: Path, python: Callable[[], str]) -> dict[str, Any]:
    """What a worker, a module that is run with the paths of a job and of its answer, says of a job: in an earlier run,
    now in a process of `python()`, or why it says nothing, as "skipped"."""
    if answer.exists():
        return json.loads(answer.read_text())  # type: ignore[no-any-return]
    asked = answer.with_suffix(".job.json")
    asked.write_text(json.dumps(job))
    try:
        command = [python(), "-W", "ignore", "-m", worker, str(asked), str(answer)]
    except RuntimeError as error:
        return {**job, "skipped": str(error)}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)])}
    done = subprocess.run(command, env=env, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {**job, "skipped": (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]}
    return json.loads(answer.read_text())  # type: ignore[no-any-return]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout).strip() or "no reason given"
        raise RuntimeError(f"not installed: {said.splitlines()[-1]}")
