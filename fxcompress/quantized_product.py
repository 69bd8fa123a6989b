"""A convolution or linear layer with a pruned and quantized weight, which is rounded again on the way back.

So the rounded weight is not kept, and lies in the cache when it is used; memory for one is enough for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fxcompress import cpu_kernels
from fxcompress.joint_calls import QuantizedActivation, prune_and_quantize, weight_rounding
from fxcompress.kernels import alias, dense, fake_quantize_one, has_kernels, laid_out
from fxcompress.operators import PRODUCTS, TRANSPOSED, argument, shape_of, weight_of
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.rounding import IDLE, Rounding


class Memory:
    """For a rounded weight and for the bytes of its gradient; `views` are what is seen of it, by shape and strides."""

    def __init__(self, size: int) -> None:
        self.floats = torch.empty(size, dtype=torch.float32, device="cpu")
        self.bytes = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.views: dict[Any, tuple[Tensor, Tensor]] = {}

    def seen_as(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The floats and the bytes, laid out as `weight` is."""
        key = weight.shape, weight.stride()
        if key not in self.views:
            self.views[key] = self.floats.as_strided(*key), self.bytes.as_strided(*key)
        return self.views[key]


class Scratch:
    """Memory that calls borrow, one after the other; where several run at once, each gets its own."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[Memory] = []

    def borrow(self, size: int) -> Memory:
        """Memory for a weight of so many elements."""
        try:
            memory = self.free.pop()
        except IndexError:
            memory = None
        if memory is None or memory.floats.numel() < size:
            self.size = max(self.size, size)
            memory = Memory(self.size)
        return memory

    def give_back(self, memory: Memory) -> None:
        """Let others have it."""
        if not memory.floats.is_inference():
            self.free.append(memory)


class QuantizedProduct:
    """`function(input(x), quantizer(pruner(weight)), bias, ...)` with what a node of such a product has behind its
    bias; the pruner may be missing, and so may `input`, which overwrites `x`."""

    def __init__(self, node: Node, modules: tuple[Pruner | None, Quantizer], scratch: Scratch) -> None:
        self.__name__ = "quantized_product"
        self.function, self.modules, self.scratch = node.target, modules, scratch
        self.settings = None if node.target is F.linear else _settings(node)
        self.axes, self.place = len(shape_of(weight_of(node))), 0
        self.input: QuantizedActivation | None = None
        self.how: Rounding | None = None

    def __call__(
        self,
        roundings: Sequence[Rounding | None],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        """As `function`, whose names these are. At its `place` among the `roundings` is what `rounding` says."""
        x, how, of_input = input, roundings[self.place], None
        acts = None if how is IDLE else how
        if self.input is not None:
            of_input = self.input.fitting(roundings[self.input.place], x) if acts is not None else None
            if of_input is None or not of_input.overwrites:
                x, of_input = self.input(roundings, x), None
        if how is IDLE:
            return self.function(x, weight, bias, *rest, **more)  # type: ignore[no-any-return, operator]
        if acts is not None and self._fits(x, weight, acts):
            return _Product.apply(x, weight, bias, self, acts, of_input)  # type: ignore[no-any-return]
        x = x if of_input is None else fake_quantize_one(x, of_input)
        return self.function(x, self._rounded(weight, acts), bias, *rest, **more)  # type: ignore[no-any-return, operator]

    def _rounded(self, weight: Tensor, how: Rounding | None) -> Tensor:
        if how is not None and has_kernels(weight, how):
            return fake_quantize_one(weight, how)
        pruner, quantizer = self.modules
        return quantizer(weight) if pruner is None else prune_and_quantize(weight, pruner, quantizer)

    def rounding(self) -> Rounding | None:
        """How the weight is rounded now, where a call does nothing else; that of before, where nothing is another."""
        self.how = weight_rounding(self.modules, self.axes, self.how)
        return self.how

    def _fits(self, x: Tensor, weight: Tensor, how: Rounding) -> bool:
        """Whether these are multiplied in float32 on a CPU."""
        if not x.is_cpu or x.dtype is not torch.float32 or weight.dtype is not torch.float32:
            return False
        if type(x) is not Tensor or torch.is_autocast_enabled("cpu"):
            return False
        if self.settings is not None and x.ndim != self.axes:
            return False  # of one sample
        return has_kernels(weight, how)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of a rounded input and weight."""
        if self.settings is None:
            return F.linear(x, weight, bias)
        return torch.convolution(x, weight, bias, *self.settings)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Those of a rounded input and weight and of the bias, as far as they are wanted; in memory of their own."""
        if self.settings is not None:
            biases = [grad.shape[1]] if wanted[2] else None
            backward = torch.ops.aten.convolution_backward
            return list(backward(grad, x, weight, biases, *self.settings, list(wanted)))
        rows = grad.reshape(-1, grad.shape[-1])
        return [
            (rows @ weight).view(x.shape) if wanted[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        ]


class _Product(torch.autograd.Function):
    """`of_input` is how the input is rounded, in its own memory, or None."""

    @staticmethod
    def forward(  # noqa: PLR0913 - what the product is of
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: QuantizedProduct,
        how: Rounding,
        of_input: Rounding | None,
    ) -> Tensor:
        ctx.call, ctx.how, keep, size = call, how, None, weight.numel()
        memory = call.scratch.borrow(size)
        rounded, _ = memory.seen_as(weight)
        jobs = [cpu_kernels.rounded(weight, how, rounded)]
        if of_input is not None:
            keep = torch.empty_like(x, dtype=torch.uint8) if ctx.needs_input_grad[0] else None
            jobs.append(cpu_kernels.rounded(x, of_input, x, keep))
            size += x.numel()
        cpu_kernels.run(jobs, size)
        y = call.compute(x, rounded, bias)
        if y._is_view():  # of tokens in a matrix; what a Function yields as a view cannot be written to in place
            y = alias(y)
        call.scratch.give_back(memory)
        # Mask and scale must be as they were, so that a change in between is an error.
        ctx.save_for_backward(x, keep, weight, bias, how.mask, how.of)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            return _Product.in_float32(ctx, grads[0])
        with torch.autocast("cpu", enabled=False):
            return _Product.in_float32(ctx, grads[0])

    @staticmethod
    def in_float32(ctx: Any, grad: Tensor) -> Any:
        """The way back, of what was computed outside of autocast."""
        (x, keep_input, weight, bias, *_), call, how = ctx.saved_tensors, ctx.call, ctx.how
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a second derivative takes the operators
            # Of others that share their memory: hooks on these are called by who called this.
            x, weight = x.view_as(x), weight.view_as(weight)
            bias = None if bias is None else bias.view_as(bias)
            seen = x if keep_input is None else _Gate.apply(x, keep_input)
            y = call.compute(seen, fake_quantize_one(weight, how), bias)
            inputs = [t for t, is_wanted in zip((x, weight, bias), wanted, strict=True) if is_wanted]
            each = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
            return *(next(each) if is_wanted else None for is_wanted in wanted), None, None, None
        memory = call.scratch.borrow(weight.numel())
        rounded, keep = memory.seen_as(weight)
        cpu_kernels.run([cpu_kernels.rounded(weight, how, rounded, keep)], weight.numel())
        of_x, of_weight, of_bias = call.gradients(grad, x, rounded, wanted)
        jobs, size = [], 0
        if of_weight is not None:
            of_weight = laid_out(of_weight, keep)
            jobs.append(cpu_kernels.gated(of_weight, keep, of_weight))
            size += of_weight.numel()
        if of_x is not None and keep_input is not None:
            keep_input = dense(keep_input)
            of_x = laid_out(of_x, keep_input)
            jobs.append(cpu_kernels.gated(of_x, keep_input, of_x))
            size += of_x.numel()
        if jobs:
            cpu_kernels.run(jobs, size, is_gate=True)
        call.scratch.give_back(memory)
        return of_x, of_weight, of_bias, None, None, None


class _Gate(torch.autograd.Function):
    """An input that was rounded in its own memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0], None


def is_product_of(node: Node, rounded: Node) -> bool:
    """Whether `node` multiplies by `rounded` in a way that can be said in numbers."""
    if node.target not in PRODUCTS or weight_of(node) is not rounded or node.all_input_nodes.count(rounded) != 1:
        return False
    return node.target is F.linear or _settings(node) is not None


def _settings(node: Node) -> tuple[Any, ...] | None:
    """Strides, padding, dilations, whether transposed, padding of the output, and groups of a convolution; None where
    they are no numbers."""
    axes, is_transposed = len(shape_of(weight_of(node))) - 2, node.target in TRANSPOSED
    last = ("output_padding", "groups", "dilation") if is_transposed else ("dilation", "groups")
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
    found = {n: argument(node, 3 + i, n, defaults[n]) for i, n in enumerate(("stride", "padding", *last))}
    if any(not _is_number(v) for v in found.values()):
        return None
    each = {name: value if isinstance(value, (tuple, list)) else (value,) for name, value in (defaults | found).items()}
    stride, padding, dilation, output_padding = (
        list(each[n]) * (axes if len(each[n]) == 1 else 1) for n in ("stride", "padding", "dilation", "output_padding")
    )
    return stride, padding, dilation, is_transposed, output_padding, each["groups"][0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, (tuple, list)) and all(isinstance(v, int) for v in value))
