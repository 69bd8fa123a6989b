"""x sigmoid(x) as integer kernels compute it: the sigmoid is on a grid of its own, from 0 to 1, and multiplies x."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.grid import Grid, fake_quantize

GATE = Grid(bits=8, signed=False, symmetric=False)
GATE_SCALE = 1 / 255
"""One is the last point of the grid, so that large x pass the gate as they are."""


def gated(x: Tensor) -> Tensor:
    """`x` times its sigmoid, which is rounded to 256 steps from 0 to 1."""
    # A scale on the CPU would be turned into its inverse for a GPU.
    gate = fake_quantize(torch.sigmoid(x), torch.full((), GATE_SCALE, device=x.device), 0, GATE)
    return x * gate
