"""Scores of a tensor's entries by a criterion, of which the least go."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from fxcompress.criteria import Function, imported, name_of


def scores(criterion: str | Function, values: Tensor, sensitivity: Tensor | None, draw: str) -> Tensor:
    """The worth of each entry of `values`, float32 and of their shape: of a weight, or an activation's mean magnitudes.

    `sensitivity` is the sum of -gradient x weight over the window; `draw` names the event, from which random scores
    come, so that they are the same wherever and whenever it acts.
    """
    if criterion == "random":
        generator = torch.Generator().manual_seed(zlib.crc32(draw.encode()))
        return torch.rand(values.shape, generator=generator).to(values.device)
    if criterion == "zeros":
        return (values != 0).float()
    if criterion in ("gradient", "movement"):
        assert sensitivity is not None
        return sensitivity.abs() if criterion == "gradient" else sensitivity
    if criterion == "magnitude":
        return values.detach().float().abs()
    function: Any = criterion if callable(criterion) else imported(criterion)
    return _checked(function(values.detach()), values, name_of(criterion))


def _checked(found: Any, values: Tensor, name: str) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != values.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"criterion '{name}' gave {shape} for a tensor of shape {tuple(values.shape)}; give its scores")
    return found.detach().float()
