"""What the command line names and Python has: models by `module:function`, inputs by file."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fxcompress.errors import LoadError


def model_from(name: str) -> tuple[nn.Module, Any]:
    """What the function `module:function` returns: a model, or a model and example inputs (else None).

    Modules are looked for in the current folder first. Raises LoadError if there is no such function, if it fails, or
    if it returns no model.
    """
    made = _called(name, "model")
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise LoadError(f"'{name}' returns {type(model).__name__}; it must return a torch.nn.Module")
    return model, inputs


def task_from(name: str) -> dict[str, Any]:
    """What the function `module:function` returns: the arguments of a search by name.

    Raises LoadError if there is no such function, if it fails, or if something is missing.
    """
    made = _called(name, "task")
    wanted = ("build", "train", "evaluate", "example_inputs", "total_steps")
    if not isinstance(made, dict) or (missing := [key for key in wanted if key not in made]):
        lacks = f"a dict without '{missing[0]}'" if isinstance(made, dict) else type(made).__name__
        raise LoadError(f"'{name}' returns {lacks}; it must return a dict with {', '.join(wanted)}")
    return made


def _called(name: str, what: str) -> Any:
    """What the function returns; modules are looked for in the current folder first."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise LoadError(f"'{name}' names no function; write module:function, such as torchvision.models:resnet18")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's code may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise LoadError(f"'{name}' gives no {what}: {type(error).__name__}: {reason}") from error


def inputs_from(path: Path) -> Any:
    """Inputs as `compress` takes them: an .npz file's arrays by argument name, or what torch.save wrote to a .pt file.

    Raises LoadError if the file cannot be read or would have to run code.
    """
    if path.suffix not in (".npz", ".pt"):
        raise LoadError(f"inputs '{path}' end in '{path.suffix}'; they are read from .npz and .pt files")
    try:
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoadError(f"cannot read the inputs '{path}': {reason}") from None
