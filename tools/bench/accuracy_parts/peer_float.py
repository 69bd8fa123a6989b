"""No quantization: the float network, fine-tuned by the same recipe where less than 8 bits are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accuracy_parts.data import Task
from accuracy_parts.training import Work, fine_tune


def quantize(model: nn.Module, teacher: nn.Module, task: Task, work: Work, settings: Mapping[str, str]) -> Any:
    """The network."""
    if work.bits < 8:
        fine_tune(model, work.recipe.optimizer(model.parameters()), teacher, task, work)
    return model


def export(net: Any, file: Path, task: Task) -> str:
    """Nothing to compare."""
    raise NotImplementedError("the float network is measured in torch")


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"torch": torch.__version__}
