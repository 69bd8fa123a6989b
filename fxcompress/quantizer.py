"""The quantizer: a graph node on a weight or an activation that puts it on an integer grid from its event on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.gates import gated
from fxcompress.grid import Grid, broadcast, fake_quantize
from fxcompress.learned import gradient_scale, learned_quantize, positive, zero_point_of
from fxcompress.masking import masked
from fxcompress.observer import Observer
from fxcompress.ranges import Calibration, scales


@dataclass(frozen=True)
class Plan:
    """What a quantizer does: its grid, which elements share a scale, and how scales come about.

    One scale for the whole tensor, or one for each index along `axis`, or one for each `block` neighbours along the
    last axis of a matrix. `learned` scales are parameters from the event on; `recalibrates` chooses a weight's scale
    anew at each training forward.
    """

    grid: Grid
    calibration: Calibration = field(default_factory=Calibration)
    axis: int | None = None
    block: int | None = None
    learned: bool = False
    recalibrates: bool = False

    def scales_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a tensor of this shape."""
        if self.block:
            return (*shape[:-1], shape[-1] // self.block)
        return () if self.axis is None else (shape[self.axis],)


class Quantizer(nn.Module):
    """Fake quantization of a tensor, off until `calibrate` has chosen a scale.

    State, all allocated here: `scale` float32 and `zero_point` int32, of one shape (`Plan.scales_of`); `enabled` bool
    []; for activations the observer's. A learned `scale` is a parameter, and so is the `offset` of an affine grid then,
    in the tensor's units; `chosen()` gives scale and zero point as they act. `observing` and `is_enabled` are the flags
    that a forward pass reads, so that it never waits for the device.
    """

    scale: Tensor
    zero_point: Tensor
    offset: Tensor
    enabled: Tensor

    def __init__(self, plan: Plan, weight_shape: tuple[int, ...] | None = None) -> None:
        """`weight_shape` is that of the weight to quantize, None for an activation.

        `fixed_scale`, once set, is the scale whatever is seen, with zero point 0.
        """
        super().__init__()
        self.fixed_scale: float | None = None
        self.plan, self.of_activation = plan, weight_shape is None
        shape = () if weight_shape is None else plan.scales_of(weight_shape)
        zero = plan.grid.centre if plan.grid.symmetric else 0
        self.register_buffer("zero_point", torch.full(shape, zero, dtype=torch.int32))
        self.register_buffer("enabled", torch.tensor(False))
        if plan.learned:
            self.scale = nn.Parameter(torch.ones(shape))
            if not plan.grid.symmetric:
                self.offset = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("scale", torch.ones(shape))
        self.observer = Observer(plan.calibration.range) if self.of_activation else None
        self.observing = False
        self.is_enabled = False
        is_fixed = not (plan.learned or plan.grid.binary)
        self.has_one_scale = is_fixed and self.of_activation
        self.has_fixed_grid = is_fixed and plan.grid.symmetric and not self.of_activation

    @property
    def grid(self) -> Grid:
        """The integers that values are put on."""
        return self.plan.grid

    @property
    def axis(self) -> int | None:
        """The axis along which scales differ, None for one scale, and for blocks."""
        return None if self.plan.block else self.plan.axis

    def forward(self, x: Tensor, ungated: Tensor | None = None) -> Tensor:
        """`x` on the grid once enabled, `x` itself before. If `ungated` is given, `x` is then its gated form."""
        if self.observing and self.training and self.observer is not None:
            self.observer(x)
        if not self.is_enabled:
            return x
        if ungated is not None:
            x = gated(ungated)
        if self.plan.recalibrates and self.training:
            self._choose(x)
        return self.on_grid(x)

    def on_grid(self, x: Tensor, mask: Tensor | None = None, is_dense: bool = False) -> Tensor:
        """`x`, or `x * mask`, on the grid; `is_dense` as in `fake_quantize`."""
        scale, zero_point = self.chosen()
        spread = self.spread(scale, x)
        if not self.plan.learned:
            # That of a symmetric weight is its grid's.
            is_known = self.grid.symmetric and not self.of_activation
            zero = self.grid.centre if is_known else self.spread(zero_point, x)
            return fake_quantize(x, spread, zero, self.grid, mask, is_dense)
        if mask is not None:
            x = masked(x, mask, is_dense)
        offset = None if self.grid.symmetric else self.spread(self.offset, x)
        g = gradient_scale(x, scale.numel(), self.of_activation, self.grid)
        return learned_quantize(x, spread, self.spread(zero_point, x), offset, self.grid, g)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Scale, float32 and positive, and zero point, int32, as they act now."""
        if not self.plan.learned:
            return self.scale, self.zero_point
        scale = positive(self.scale)
        return scale, self.zero_point if self.grid.symmetric else zero_point_of(self.offset, scale, self.grid).detach()

    @torch.no_grad()
    def clipped(self, x: Tensor) -> Tensor:
        """How many values of `x` round to an integer outside of the grid and saturate, int64 []."""
        scale, zero_point = (self.spread(values, x) for values in self.chosen())
        q = torch.div(x.float(), scale).round_().add_(zero_point)
        return ((q < self.grid.qmin) | (q > self.grid.qmax)).sum()

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Scales or zero points so that they broadcast against `x`."""
        return broadcast(values, self.axis, x.ndim, self.plan.block)

    @torch.no_grad()
    def calibrate(self, weight: Tensor | None = None) -> None:
        """Choose the scale from `weight`, or from what the observer saw, and switch the quantizer on."""
        if self.fixed_scale is not None:
            self.scale.fill_(self.fixed_scale)
            self.zero_point.zero_()
        else:
            self._choose(weight)
        self.enable()

    @torch.no_grad()
    def _choose(self, weight: Tensor | None) -> None:
        if weight is None:
            assert self.observer is not None
            scale, zero_point = scales(*self.observer.values(), self.grid, self.plan.calibration)
        else:
            scale, zero_point = scales(self._rows(weight), None, self.grid, self.plan.calibration)
        self.scale.copy_(scale.view(self.scale.shape))
        self.zero_point.copy_(zero_point.view(self.scale.shape))
        if self.plan.learned and not self.grid.symmetric:
            self.offset.copy_(-self.zero_point * self.scale)

    def _rows(self, weight: Tensor) -> Tensor:
        """The elements that share a scale as the rows of a matrix."""
        if self.plan.block:
            return weight.reshape(-1, self.plan.block)
        if self.axis is None:
            return weight.reshape(1, -1)
        return weight.movedim(self.axis, 0).flatten(1) if weight.ndim > 1 else weight[:, None]

    def enable(self) -> None:
        """Quantize from now on."""
        self.enabled.fill_(True)
        self.is_enabled = True

    def release(self) -> None:
        """Quantize no more."""
        self.enabled.fill_(False)
        self.is_enabled = False

    @property
    def flags(self) -> tuple[bool, ...]:
        """What a forward pass reads to know what it does."""
        return self.observing, self.is_enabled

    def reset(self) -> None:
        """Forget what was observed."""
        if self.observer is not None:
            self.observer.reset()

    def cuts(self, kept: Sequence[Tensor | None]) -> dict[str, dict[int, Tensor]]:
        """By name of a tensor and axis the places that stay, where those along each axis of the weight are `kept`."""
        if self.of_activation or (self.axis is None and not self.plan.block):
            return {}
        along = dict(enumerate(kept)) if self.plan.block else {0: kept[self.axis or 0]}
        if self.plan.block and (inputs := along[1]) is not None:
            along[1] = inputs.view(-1, self.plan.block).all(1)
        axes = {axis: stay for axis, stay in along.items() if stay is not None}
        return {name: axes for name in ("scale", "zero_point", "offset") if hasattr(self, name)}

    @property
    def has_observed(self) -> bool:
        """Whether the observer saw anything since its last reset (waits for the device)."""
        return self.observer is not None and bool(self.observer.low <= self.observer.high)

    def train(self, mode: bool = True) -> Quantizer:
        """Switch the mode, and read the flags again: an average of nets (EMA) has its buffers written from outside."""
        self.is_enabled = bool(self.enabled)
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_enabled = bool(self.enabled)

    def extra_repr(self) -> str:
        """The grid and how its scale is chosen."""
        sign = "int" if self.grid.signed else "uint"
        shape = f"blocks of {self.plan.block}" if self.plan.block else f"axis {self.axis}"
        per = "per tensor" if self.axis is None and not self.plan.block else shape
        how = "learned" if self.plan.learned else self.plan.calibration.scale
        return f"{sign}{self.grid.bits}, {per}, range {self.plan.calibration.range}, scale {how}"
