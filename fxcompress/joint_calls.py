"""What stands in the graph as it is run for an activation function, a pruner and a quantizer in a row; and how each
rounds in this forward."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.grid import broadcast
from fxcompress.kernels import fake_quantize_one, has_kernels, is_eager
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.rounding import IDLE, Bounds, Rounding

_HOOKS = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FLAGS = itemgetter("training", "observing", "is_enabled")
_FLAGS_OF_PRUNER = itemgetter("training", "observing", "is_enabled", "is_frozen")

Looked = tuple[list[tuple[bool, ...]], list[int], list[Tensor | None]]


class QuantizedActivation:
    """`quantizer(pruner(function(x)))`, of which the first two may be missing; in one pass over memory where nothing
    looks between them. `function` is a module or a function, and only bounds its input to `within`.

    `overwrites` says that nobody else reads `x`, the values that it was computed from or to; but for those who are told
    of calls of the module `before`, if that made it.
    """

    def __init__(  # noqa: PLR0913 - a row and its place
        self,
        function: Any,
        within: Bounds,
        pruner: Pruner | None,
        quantizer: Quantizer,
        overwrites: bool = False,
        before: nn.Module | None = None,
    ) -> None:
        self.__name__ = "quantized_activation"
        self.function, self.within, self.pruner, self.quantizer = function, within, pruner, quantizer
        self.overwrites, self.before = overwrites, before
        self.how: Rounding | None = None
        self.place = 0
        self.modules = [m for m in (function, pruner, quantizer) if isinstance(m, nn.Module)]

    def __call__(self, roundings: Sequence[Rounding | None], x: Tensor) -> Tensor:
        """Of an `x` of shape (N, ...). At its `place` among the `roundings` is what `rounding` says."""
        how = self.fitting(roundings[self.place], x)
        if how is not None and how is not IDLE:
            return fake_quantize_one(x, how)
        if self.function is not None:
            x = self.function(x)
        if how is IDLE:
            return x
        if self.pruner is not None:
            return prune_and_quantize(x, self.pruner, self.quantizer)
        return self.quantizer(x)  # type: ignore[no-any-return]

    def fitting(self, how: Rounding | None, x: Tensor) -> Rounding | None:
        """How this `x` is rounded; None if by calling what there is."""
        if how is IDLE:
            return how
        if how is None or not has_kernels(x, how):
            return None
        if how.mask is None or (how.prepared is not None and how.prepared[0] == x.shape):
            return how
        mask = self.pruner.fitting(x)  # type: ignore[union-attr]
        if mask is not how.mask:
            how = Rounding(how.scale, how.zero_point, how.ends, mask, within=how.within)
        return how

    def rounding(self) -> Rounding | None:
        """How an input is rounded now, where a call does nothing else; that of before, where nothing is another."""
        if _are_idle(self.pruner, self.quantizer):
            return IDLE
        if not self._is_alone():
            return None
        how, buffers, pruner = self.how, self.quantizer._buffers, self.pruner
        scale, zero_point = buffers["scale"], buffers["zero_point"]
        mask = None if pruner is None or not pruner.is_enabled else pruner._buffers["mask"]
        if how is None or how.scale is not scale or how.zero_point is not zero_point or how.mask is not mask:
            assert scale is not None and zero_point is not None
            grid = self.quantizer.grid
            self.how = how = Rounding(scale, zero_point, (grid.qmin, grid.qmax), mask, within=self.within)
        how.overwrites = self.overwrites and (self.before is None or not has_hooks(self.before))
        return how

    def _is_alone(self) -> bool:
        """Whether a call does nothing but to bound, mask and round with one scale."""
        quantizer, pruner = self.quantizer, self.pruner
        if not quantizer.is_enabled or not quantizer.has_one_scale:
            return False
        if (quantizer.training and quantizer.observing) or any(map(has_hooks, self.modules)):
            return False
        if pruner is None:
            return True
        if pruner.training and pruner.observing:
            return False
        return not pruner.is_enabled or not pruner.is_dense or pruner.is_frozen


class Roundings:
    """How each of some calls rounds in this forward, looked at one after the other: between convolutions, which leave
    nothing in the caches, that takes several times as long. Where all that it depends on is what it was, so is it."""

    def __init__(self) -> None:
        self.__name__ = "roundings"
        self.calls: list[Any] = []
        # What their modules have, whatever it is when a call looks.
        self.all: list[dict[str, Any]] = []
        self.quantizers: list[dict[str, Any]] = []
        self.pruners: list[dict[str, Any]] = []
        self.last: tuple[Looked | None, list[Rounding | None]] | None = None

    def __call__(self) -> list[Rounding | None]:
        """By their places."""
        if not is_eager() or torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return [None] * len(self.calls)
        last, now = self.last, self._looked_at()
        if _are_same(last and last[0], now):
            return last[1]  # type: ignore[index]
        roundings = [call.rounding() for call in self.calls]
        # Another thread may have switched something meanwhile.
        self.last = (now, roundings) if _are_same(now, self._looked_at()) else None
        return roundings

    def add(self, call: Any) -> None:
        """Give a call its place."""
        call.place = len(self.calls)
        self.calls.append(call)
        for module in (*call.modules, getattr(call, "before", None)):
            if module is not None:
                self.all.append(module.__dict__)
            if isinstance(module, Quantizer):
                self.quantizers.append(module.__dict__)
            elif isinstance(module, Pruner):
                self.pruners.append(module.__dict__)

    def _looked_at(self) -> Looked | None:
        """Flags, addresses and tensors that `rounding` looks at; None where somebody is told of calls."""
        if any(map(any, map(_HOOKS, self.all))):
            return None
        flags = [*map(_FLAGS, self.quantizers), *map(_FLAGS_OF_PRUNER, self.pruners)]
        each = [have["_buffers"] for have in self.quantizers]
        scales = [buffers.get("scale") for buffers in each]
        addresses = [scale.data_ptr() for scale in scales if type(scale) is Tensor]
        zero_points, masks = ([b["zero_point"] for b in each], [have["_buffers"]["mask"] for have in self.pruners])
        return flags, addresses, scales + zero_points + masks


def _are_same(a: Looked | None, b: Looked | None) -> bool:
    """Whether both are there, and alike."""
    return a is not None and b is not None and a[:2] == b[:2] and all(map(is_, a[2], b[2]))


def weight_rounding(modules: tuple[Pruner | None, Quantizer], axes: int, before: Rounding | None) -> Rounding | None:
    """How a weight of so many axes is rounded, the same as `before` if it is; None if by calling its modules."""
    pruner, quantizer = modules
    if _are_idle(pruner, quantizer):
        return IDLE
    mask, is_dense, scale = None, False, None
    if pruner is not None and pruner.is_enabled:
        mask, is_dense = pruner._buffers["mask"], pruner.is_dense and not pruner.is_frozen
    if quantizer.is_enabled:
        scale = quantizer._buffers["scale"] if quantizer.has_fixed_grid and not quantizer.plan.block else None
    if looks(quantizer) or (pruner is not None and looks(pruner)):
        return None
    if scale is None and (mask is None or quantizer.is_enabled):
        return None
    is_same = before is not None and before.of is scale and before.mask is mask and before.is_dense is is_dense
    if is_same and (scale is None or before.scale.data_ptr() == scale.data_ptr()):  # type: ignore[union-attr]
        return before
    if scale is None:
        return Rounding(None, mask=mask, is_dense=is_dense)
    # A view would bind the scale to its memory, which loading a state may exchange.
    grid, spread = quantizer.grid, broadcast(scale.data, quantizer.axis, axes)
    how = Rounding(spread, grid.centre, (grid.qmin, grid.qmax), mask, is_dense)
    how.of = scale
    return how


def prune_and_quantize(x: Tensor, pruner: Pruner, quantizer: Quantizer) -> Tensor:
    """`quantizer(pruner(x))`, in passes over memory that do both where nothing looks between the two."""
    if pruner.is_enabled and quantizer.is_enabled and not looks(pruner) and not looks(quantizer):
        return quantizer.on_grid(x, pruner.fitting(x), pruner.is_dense and not pruner.is_frozen)
    return quantizer(pruner(x))  # type: ignore[no-any-return]


def _are_idle(pruner: Pruner | None, quantizer: Quantizer) -> bool:
    """Whether both give what they get, and nobody sees it."""
    if quantizer.is_enabled or looks(quantizer):
        return False
    return pruner is None or not (pruner.is_enabled or looks(pruner))


def looks(module: Pruner | Quantizer) -> bool:
    """Whether a call does more than to compute."""
    if module.training and (module.observing or (isinstance(module, Quantizer) and module.plan.recalibrates)):
        return True
    return has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody is told of calls of `module`."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
