"""The pruner: a graph node on a weight or an activation that multiplies it by a mask of zeros and ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import InputError


class Pruner(nn.Module):
    """A mask over a weight's elements, or over (C, H, W) of an activation, the same for every sample.

    State, all allocated here: `mask` bool, True where kept; `enabled` bool []; for activations `magnitude` float32, the
    running sum of |x| over the samples seen. The gradient reaches kept elements only: a masked weight rests unless the
    optimizer's own momentum or decay moves it, and a later event of the ramp may bring it back by its magnitude.
    """

    mask: Tensor
    enabled: Tensor
    magnitude: Tensor

    def __init__(self, shape: tuple[int, ...], of_activation: bool) -> None:
        """`shape` is the weight's, or that of one sample of the activation."""
        super().__init__()
        self.of_activation = of_activation
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("enabled", torch.tensor(False))
        if of_activation:
            self.register_buffer("magnitude", torch.zeros(shape))
        self.observing = False
        self.is_enabled = False

    def forward(self, x: Tensor) -> Tensor:
        """`x` with zeros where the mask has them once enabled, `x` itself before. Raises InputError on another size."""
        if not self.is_enabled and not (self.observing and self.training):
            return x
        if self.of_activation and x.shape[1:] != self.mask.shape and self.mask.numel() != len(self.mask):
            raise InputError(
                f"an activation of shape {tuple(x.shape[1:])} per sample reached a mask of shape "
                f"{tuple(self.mask.shape)}; call the net with inputs of the size of the example inputs, or prune "
                "weights only"
            )
        if self.observing and self.training:
            self.magnitude += x.detach().abs().float().sum(0)
        return x * self.mask if self.is_enabled else x

    @torch.no_grad()
    def prune(self, sparsity: float, weight: Tensor | None = None) -> None:
        """Choose the mask anew, least magnitudes of `weight` (or of what was observed) first, and switch the pruner
        on."""
        magnitude = self.magnitude if weight is None else weight.detach().abs()
        self.mask.copy_(kept(magnitude, sparsity))
        self.enable()

    def enable(self) -> None:
        """Multiply by the mask from now on."""
        self.enabled.fill_(True)
        self.is_enabled = True

    def reset(self) -> None:
        """Forget the observed magnitudes."""
        if self.of_activation:
            self.magnitude.zero_()

    def cuts(self, kept: Sequence[Tensor | None]) -> dict[str, dict[int, Tensor]]:
        """By name of a buffer and axis the places that stay, where those along each axis of the tensor are `kept`."""
        axes = dict(enumerate(kept[1:] if self.of_activation else kept))
        return {
            name: {a: stay for a, stay in axes.items() if stay is not None and buffer.shape[a] == len(stay)}
            for name, buffer in self.named_buffers()
            if buffer.ndim == len(axes)
        }

    @property
    def has_observed(self) -> bool:
        """Whether any magnitude was observed since the last reset (waits for the device)."""
        return bool(self.magnitude.any())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_enabled = bool(self.enabled)

    def extra_repr(self) -> str:
        """The mask's shape."""
        return f"mask {tuple(self.mask.shape)} of {'an activation' if self.of_activation else 'a weight'}"


def zeros_in(sparsity: float, n: int) -> int:
    """How many of `n` elements a sparsity in [0, 1] prunes: min(round_half_even(s n), n - 1) unless s = 1."""
    return n if sparsity == 1 else min(round(sparsity * n), n - 1)


def kept(magnitude: Tensor, sparsity: float) -> Tensor:
    """A bool mask of `magnitude`'s shape, False for exactly the `zeros_in` least values; of equal ones the first go."""
    flat = magnitude.flatten()
    count = zeros_in(sparsity, flat.numel())
    if count == 0:
        return torch.ones_like(magnitude, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    below, ties = flat < threshold, flat == threshold
    pruned = below | (ties & (ties.cumsum(0) <= count - below.sum()))
    return ~pruned.view(magnitude.shape)
