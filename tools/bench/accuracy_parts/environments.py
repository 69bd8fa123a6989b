"""A virtual environment for each peer, made once in a folder that the user names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout).strip() or "no reason given"
        raise RuntimeError(f"not installed: {said.splitlines()[-1]}")
