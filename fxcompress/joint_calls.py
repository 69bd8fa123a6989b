"""What stands in the graph as it is run for an activation function, a pruner and a quantizer in a row, and for those of
many weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.cuda_kernels import fake_quantize_cuda, has_kernels
from fxcompress.known_scale import Bounds, Known, fake_quantize_known
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.weight_group import Rounding, fake_quantize_all


class QuantizedActivation:
    """`quantizer(pruner(function(x)))`, of which the first two may be missing; in passes over memory that do all of it
    where nothing looks between them. `function` is a module or a function, and only bounds its input to `within`."""

    def __init__(self, function: Any, within: Bounds, pruner: Pruner | None, quantizer: Quantizer) -> None:
        self.__name__ = "quantized_activation"
        self.function, self.within, self.pruner, self.quantizer = function, within, pruner, quantizer
        self.known: Known | None = None
        self.modules = [m for m in (function, pruner, quantizer) if isinstance(m, nn.Module)]

    def __call__(self, x: Tensor) -> Tensor:
        """Of an `x` of shape (N, ...)."""
        if not torch.compiler.is_compiling() and self._is_alone(x):
            if has_kernels(x):
                return self._on_cuda(x)
            if (known := self._known(x)) is not None:
                return fake_quantize_known(x, known)
        if self.function is not None:
            x = self.function(x)
        if self.pruner is not None:
            return prune_and_quantize(x, self.pruner, self.quantizer)
        return self.quantizer(x)  # type: ignore[no-any-return]

    def _is_alone(self, x: Tensor) -> bool:
        """Whether a call does nothing but to bound, mask and round with one scale."""
        quantizer, pruner = self.quantizer, self.pruner
        if not quantizer.is_enabled or not quantizer.has_one_scale or type(x) is not Tensor:
            return False
        if (quantizer.training and quantizer.observing) or any(map(has_hooks, self.modules)):
            return False
        if pruner is None:
            return True
        return (
            pruner.is_enabled
            and not (pruner.training and pruner.observing)
            and not (pruner.is_dense and not pruner.is_frozen)
        )

    def _on_cuda(self, x: Tensor) -> Tensor:
        grid, mask = self.quantizer.grid, None if self.pruner is None else self.pruner.fitting(x)
        scale, zero_point = self.quantizer.chosen()
        return fake_quantize_cuda(x, scale, zero_point, (grid.qmin, grid.qmax), mask, within=self.within)

    def _known(self, x: Tensor) -> Known | None:
        """What is known of scale and mask; None where they cannot be read for nothing."""
        quantizer, pruner = self.quantizer, self.pruner
        if not x.is_cpu or x.dtype is not torch.float32:
            return None
        mask: Any = None if pruner is None else pruner._buffers["mask"]
        scale: Any = quantizer._buffers["scale"]
        zero_point: Any = quantizer._buffers["zero_point"]
        if scale.is_inference() or (mask is not None and mask.is_inference()):
            return None  # what changes them is not counted
        if self.known is None or not self.known.holds(x, scale, zero_point, mask):
            fitting = None if pruner is None else pruner.fitting(x)
            self.known = Known(x, quantizer.grid, self.within, (scale, zero_point, mask), fitting)
        return self.known


class QuantizedWeights:
    """`quantizer(pruner(weight))` of each weight; where a weight is pruned or quantized at all, and nothing looks, with
    all others. A pruner may be missing."""

    def __init__(self, modules: list[tuple[Pruner | None, Quantizer]]) -> None:
        self.__name__ = "quantized_weights"
        self.modules = modules

    def __call__(self, *weights: Tensor) -> list[Tensor]:
        """In the order of the modules."""
        how = {} if torch.compiler.is_compiling() else self._roundings(weights)
        found = {
            i: quantizer(w) if pruner is None else prune_and_quantize(w, pruner, quantizer)
            for i, (w, (pruner, quantizer)) in enumerate(zip(weights, self.modules, strict=True))
            if i not in how
        }
        if how:
            found |= zip(how, fake_quantize_all([weights[i] for i in how], list(how.values())), strict=True)
        return [found[i] for i in range(len(weights))]

    def _roundings(self, weights: tuple[Tensor, ...]) -> dict[int, Rounding]:
        each = (_rounding(modules, w) for modules, w in zip(self.modules, weights, strict=True))
        return {i: how for i, how in enumerate(each) if how is not None}


def _rounding(modules: tuple[Pruner | None, Quantizer], weight: Tensor) -> Rounding | None:
    """How the weight is rounded; None where its modules have to be called."""
    pruner, quantizer = modules
    if not quantizer.is_enabled or not quantizer.has_fixed_grid or looks(quantizer) or not _is_plain(weight):
        return None
    if pruner is not None and (not pruner.is_enabled or looks(pruner) or (pruner.is_dense and not pruner.is_frozen)):
        return None
    grid = quantizer.grid
    mask = None if pruner is None else pruner.mask.view(torch.uint8)
    return Rounding(quantizer.spread(quantizer.scale, weight), grid.qmin - grid.centre, grid.qmax - grid.centre, mask)


def _is_plain(weight: Tensor) -> bool:
    is_trained = weight.requires_grad or not torch.is_grad_enabled()
    return is_trained and type(weight) in (Tensor, nn.Parameter) and weight.dtype is torch.float32


def prune_and_quantize(x: Tensor, pruner: Pruner, quantizer: Quantizer) -> Tensor:
    """`quantizer(pruner(x))`, in passes over memory that do both where nothing looks between the two."""
    if pruner.is_enabled and quantizer.is_enabled and not looks(pruner) and not looks(quantizer):
        return quantizer.on_grid(x, pruner.fitting(x), pruner.is_dense and not pruner.is_frozen)
    return quantizer(pruner(x))  # type: ignore[no-any-return]


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
