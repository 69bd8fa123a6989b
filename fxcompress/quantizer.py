"""The quantizer: a graph node on a weight or an activation that puts it on an integer grid from its event on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.gates import gated
from fxcompress.grid import Grid, broadcast, fake_quantize
from fxcompress.ranges import Observer, scales


class Quantizer(nn.Module):
    """Fake quantization of a tensor, off until `calibrate` has chosen a scale.

    State, all allocated here: `scale` float32 and `zero_point` int32, [C] along `axis` or [] for one per tensor;
    `enabled` bool []; for activations the observer's. `observing` and `is_enabled` are the flags that a forward pass
    reads, so that it never waits for the device.
    """

    scale: Tensor
    zero_point: Tensor
    enabled: Tensor

    def __init__(self, grid: Grid, how: tuple[str, str], channels: int | None = None, axis: int | None = None) -> None:
        """`how` is the rule's (`range`, `scale`), such as ("min-max", "float").

        `fixed_scale`, once set, is the scale whatever is seen, with zero point 0.
        """
        super().__init__()
        self.fixed_scale: float | None = None
        self.grid, self.how, self.axis = grid, how, axis
        shape = () if channels is None else (channels,)
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("enabled", torch.tensor(False))
        self.observer = Observer(keeps_histogram="mse" in how or "power-of-two" in how)
        self.observing = False
        self.is_enabled = False

    def forward(self, x: Tensor, ungated: Tensor | None = None) -> Tensor:
        """`x` on the grid once enabled, `x` itself before. If `ungated` is given, `x` is then its gated form."""
        if self.observing and self.training:
            self.observer(x)
        if not self.is_enabled:
            return x
        if ungated is not None:
            x = gated(ungated)
        scale = broadcast(self.scale, self.axis, x.ndim)
        return fake_quantize(x, scale, broadcast(self.zero_point, self.axis, x.ndim), self.grid)

    @torch.no_grad()
    def calibrate(self, weight: Tensor | None = None) -> None:
        """Choose the scale from `weight`, or from what the observer saw, and switch the quantizer on."""
        if self.fixed_scale is not None:
            self.scale.fill_(self.fixed_scale)
            self.zero_point.zero_()
            self.enable()
            return
        if weight is None:
            values, counts = self.observer.values()
        else:
            values, counts = _rows(weight, self.axis), None
        scale, zero_point = scales(values, counts, self.grid, self.how)
        self.scale.copy_(scale.view(self.scale.shape))
        self.zero_point.copy_(zero_point.view(self.scale.shape))
        self.enable()

    def enable(self) -> None:
        """Quantize from now on."""
        self.enabled.fill_(True)
        self.is_enabled = True

    @property
    def has_observed(self) -> bool:
        """Whether the observer saw anything since its last reset (waits for the device)."""
        return bool(self.observer.low <= self.observer.high)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_enabled = bool(self.enabled)

    def extra_repr(self) -> str:
        """The grid and how its scale is chosen."""
        sign, shape = "int" if self.grid.signed else "uint", "per tensor" if self.axis is None else f"axis {self.axis}"
        return f"{sign}{self.grid.bits}, {shape}, range {self.how[0]}, scale {self.how[1]}"


def _rows(weight: Tensor, axis: int | None) -> Tensor:
    return (
        weight.reshape(1, -1)
        if axis is None
        else weight.movedim(axis, 0).flatten(1)
        if weight.ndim > 1
        else weight[:, None]
    )
