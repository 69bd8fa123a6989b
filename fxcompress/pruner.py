"""The pruner: a graph node on a weight or an activation that multiplies it by a mask of zeros and ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fxcompress.errors import InputError
from fxcompress.masking import masked
from fxcompress.masks import kept
from fxcompress.rules import Prune

_KEPT = "kept_as_"


class Pruner(nn.Module):
    """A mask over a weight's elements, or over (C, H, W) of an activation, the same for every sample.

    State, all allocated here: `mask` bool, True where kept, of the tensor's shape or of length one along axes that it
    covers whole; `enabled` bool []; `frozen` bool [], once the mask will not change any more. For activations
    `magnitude` float32 of the mask's shape, the running sum of |x| over the samples seen; for criteria that look at
    gradients `sensitivity` float32 of the weight's shape, the running sum of -gradient x weight; for weights that go
    back `origin`, what they were; a mask kept under a name is `kept_as_<name>`. `is_enabled`, `is_frozen` and
    `observing` are the flags a forward pass reads.
    """

    mask: Tensor
    enabled: Tensor
    frozen: Tensor
    magnitude: Tensor
    sensitivity: Tensor
    origin: Tensor

    def __init__(self, mask: tuple[int, ...], shape: tuple[int, ...] | None = None, rule: Prune | None = None) -> None:
        """`mask` is the mask's shape, `shape` that of the weight, None for an activation."""
        super().__init__()
        self.of_activation = shape is None
        self.is_dense = rule is not None and rule.is_dense
        self.fits_centre = rule is not None and rule.sizes == "centre"
        self.register_buffer("mask", torch.ones(mask, dtype=torch.bool))
        self.register_buffer("enabled", torch.tensor(False))
        self.register_buffer("frozen", torch.tensor(False))
        if shape is None:
            self.register_buffer("magnitude", torch.zeros(mask))
        elif rule is not None and rule.needs_gradient:
            self.register_buffer("sensitivity", torch.zeros(shape))
        if shape is not None and rule is not None and rule.rewind is not None:
            self.register_buffer("origin", torch.zeros(shape))
        self.observing = False
        self.is_enabled = self.is_frozen = False
        self._read_bytes()

    def forward(self, x: Tensor) -> Tensor:
        """`x` with zeros where the mask has them once enabled, `x` itself before. Raises InputError on another size."""
        is_observing = self.observing and self.training
        if not self.is_enabled and not is_observing:
            return x
        mask = self.fitting(x)
        if is_observing and self.of_activation:
            self._look_at(x)
        pruned: Tensor = x
        if self.is_enabled:
            pruned = masked(x, mask, self.is_dense and not self.is_frozen)
        if is_observing and not self.of_activation and "sensitivity" in self._buffers:
            pruned = _Watched.apply(pruned, x.detach(), self.sensitivity)
        return pruned

    def _look_at(self, x: Tensor) -> None:
        seen = x.detach().abs().float().sum(0)
        for axis, length in enumerate(self.mask.shape):
            if length == 1 and seen.shape[axis] > 1:  # the mean, since sizes may vary
                seen = seen.mean(axis, keepdim=True)
        self.magnitude += centred(seen, self.mask.shape, 0.0)

    def fitting(self, x: Tensor) -> Tensor:
        """The mask for a weight, or for an activation of any size that it can serve.

        Bytes of zero and one where that is compiled, since what is compiled for CPUs reads bools one at a time.
        """
        mask = self._bytes if torch.compiler.is_compiling() else self.mask
        if not self.of_activation:
            return mask
        sample, own = x.shape[1:], mask.shape
        if len(sample) == len(own) and all(n in (1, m) for n, m in zip(own, sample, strict=True)):
            return mask
        if not self.fits_centre or len(sample) != len(own) or sample[0] != own[0]:
            raise InputError(
                f"an activation of shape {tuple(sample)} per sample reached a mask of shape {tuple(own)}; call the net "
                "with inputs of the size of the example inputs, or prune with sizes: centre, pattern: channel, or "
                "weights only"
            )
        return centred(mask, sample, True)

    @torch.no_grad()
    def prune(self, sparsity: float, scores: Tensor) -> None:
        """Choose the mask anew, least `scores` (one for each entry of the mask) first, and switch the pruner on."""
        self.keep(kept(scores.reshape(self.mask.shape), sparsity))

    @torch.no_grad()
    def keep(self, mask: Tensor) -> None:
        """Multiply by this mask from now on."""
        self.mask.copy_(mask)
        self.enable()

    def enable(self) -> None:
        """Multiply by the mask from now on."""
        self._read_bytes()
        self.enabled.fill_(True)
        self.is_enabled = True

    def freeze(self) -> None:
        """Note that the mask will not change any more."""
        self.frozen.fill_(True)
        self.is_frozen = True

    def release(self) -> None:
        """Lift the mask."""
        self.mask.fill_(True)
        self.enabled.fill_(False)
        self.frozen.fill_(False)
        self.is_enabled = self.is_frozen = False

    @property
    def kept_masks(self) -> tuple[str, ...]:
        """The names of the masks that are kept."""
        return tuple(name.removeprefix(_KEPT) for name in self._buffers if name.startswith(_KEPT))

    def keep_mask(self, name: str) -> None:
        """Keep the mask as it is now under `name`."""
        self.register_buffer(f"{_KEPT}{name}", self.mask.clone())

    def use_mask(self, name: str | None) -> None:
        """Multiply by a mask that is kept; by none for None."""
        if name is None:
            self.release()
        else:
            self.keep(self.get_buffer(f"{_KEPT}{name}"))

    @property
    def ever_kept(self) -> Tensor:
        """What the mask or any that is kept keeps, bool."""
        mask = self.mask
        for name in self.kept_masks:
            mask = mask | self.get_buffer(f"{_KEPT}{name}")
        return mask

    @property
    def flags(self) -> tuple[bool, ...]:
        """What a forward pass reads to know what it does."""
        return self.observing, self.is_enabled, self.is_dense and self.is_frozen

    def reset(self) -> None:
        """Forget what was observed."""
        for name in ("magnitude", "sensitivity"):
            if name in self._buffers:
                self._buffers[name].zero_()  # type: ignore[union-attr]

    @property
    def has_observed(self) -> bool:
        """Whether anything was observed since the last reset (waits for the device)."""
        return bool((self.magnitude if self.of_activation else self.sensitivity).any())

    def cuts(self, stays: Sequence[Tensor | None]) -> dict[str, dict[int, Tensor]]:
        """By name of a buffer and axis the places that stay, where those along each axis of the tensor are `stays`."""
        axes = dict(enumerate(stays[1:] if self.of_activation else stays))
        return {
            name: {a: stay for a, stay in axes.items() if stay is not None and buffer.shape[a] == len(stay)}
            for name, buffer in self.named_buffers()
            if buffer.ndim == len(axes)
        }

    def train(self, mode: bool = True) -> Pruner:
        """Switch the mode, and read the flags again: an average of nets (EMA) has its buffers written from outside."""
        self.is_enabled, self.is_frozen = bool(self.enabled), bool(self.frozen)
        return super().train(mode)

    def _read_bytes(self) -> None:
        """See the memory of the mask, which may be another now, as bytes."""
        seen = self.__dict__.get("_bytes")
        if seen is None or seen.data_ptr() != self.mask.data_ptr() or seen.shape != self.mask.shape:
            self._bytes = self.mask.view(torch.uint8)

    def _apply(self, *args: Any, **kwargs: Any) -> Pruner:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._read_bytes()
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "mask":
            self._read_bytes()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._read_bytes()

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **kwargs: Any) -> None:
        # The masks kept are those of the state, if it has any of this module.
        for name in self.kept_masks if f"{prefix}mask" in state_dict else ():
            delattr(self, f"{_KEPT}{name}")
        for key in state_dict:
            if key.startswith(f"{prefix}{_KEPT}"):
                self.register_buffer(key.removeprefix(prefix), torch.ones_like(self.mask))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.is_enabled, self.is_frozen = bool(self.enabled), bool(self.frozen)
        self._read_bytes()

    def extra_repr(self) -> str:
        """The mask's shape."""
        return f"mask {tuple(self.mask.shape)} of {'an activation' if self.of_activation else 'a weight'}"


def centred(t: Tensor, shape: Sequence[int], fill: float | bool) -> Tensor:
    """`t` in the middle of a tensor of `shape` that is `fill` around it, or the middle of `t` where that is smaller."""
    if tuple(t.shape) == tuple(shape):
        return t
    pad: list[int] = []
    for own, wanted in zip(reversed(t.shape), reversed(shape), strict=True):
        before = (wanted - own) // 2
        pad += [before, wanted - own - before]
    return F.pad(t, pad, value=fill)


class _Watched(torch.autograd.Function):
    """The pruned weight as it is; on the way back -gradient x weight is added to the sum."""

    @staticmethod
    def forward(ctx: Any, pruned: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.total = total
        return pruned.view_as(pruned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        # A step that overflowed in half precision will be skipped; it must not count.
        ctx.total -= (gradient * weight).float().nan_to_num_(0.0, 0.0, 0.0)
        return gradient, None, None
