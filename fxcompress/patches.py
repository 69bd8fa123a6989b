"""What Python sees differently while a forward is captured, and what it may not do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ClassMethodDescriptorType
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import nn
from torch.fx import _symbolic_trace

from fxcompress.operators import STOCHASTIC_DEPTHS
from fxcompress.symbols import Untraceable, is_symbol

FACTORIES = (
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
"""Functions of torch that make tensors: each call of the net makes them anew, as the model does."""

EITHER_NUMBER_OR_TENSOR = (
    "add", "bitwise_and", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bucketize",
    "clamp", "clamp_", "clamp_max", "clamp_max_", "clamp_min", "clamp_min_",  "clip", "clip_", "copysign",
    "cumulative_trapezoid", "div", "divide", "eq", "fill", "fill_", "float_power", "floor_divide", "fmod", "ge",
    "gradient", "greater",
    "greater_equal", "gt", "index_fill", "isin", "le", "lerp", "less", "less_equal", "lt", "masked_fill", "mul",
    "multiply", "ne", "not_equal", "polar", "pow", "remainder", "result_type", "rsub", "scatter", "searchsorted", "sub",
    "subtract", "trapezoid", "true_divide", "where", "xlogy", "xlogy_",
)  # fmt: skip
"""Functions of torch that look into an argument to learn whether it is a number; a symbol, which says that it is a
tensor, has no inside to look into."""

_CHECKPOINT = "_checkpoint_without_reentrant_generator"
if hasattr(torch.utils.checkpoint, f"{_CHECKPOINT}_impl"):  # from torch 2.12 on
    _CHECKPOINT += "_impl"

LOST = {
    "torch.amp.autocast_mode.autocast.__enter__": "it enters torch.autocast, a region that a graph cannot hold",
    "torch.autograd.graph.saved_tensors_hooks.__enter__": "it recomputes or moves what it saves for backward",
    "torch.autograd.function.Function.apply": "it calls an autograd.Function, whose backward a graph cannot hold",
    f"torch.utils.checkpoint.{_CHECKPOINT}": "it recomputes in backward what it drops",
    "torch._functorch.apis.vmap_impl": "it maps over an axis with torch.vmap, which a graph cannot hold",
    "torch._functorch.eager_transforms.grad_and_value_impl": "it differentiates in its forward",
    "torch._functorch.eager_transforms._vjp_with_argnums": "it differentiates in its forward",
    "torch._functorch.eager_transforms._jvp_with_argnums": "it differentiates in its forward",
    "torch.nn.attention._sdpa_kernel": "it chooses an attention kernel for a region, which a graph cannot hold",
}
"""What a graph would lose, by where it stands, and why a forward that does it is an island."""


class Flag:
    """Stands for a module's `training` flag while tracing."""

    def __init__(self, path: str) -> None:
        self.path = path


@contextmanager
def symbolic_flags(root: nn.Module) -> Iterator[None]:
    """Hide every `training` flag where `nn.Module.__getattr__` finds a sentinel, which the tracer turns into a value.

    A flag is a plain attribute, so tracing would never see it read. Only the mirror is touched.
    """
    flags = {module: module.__dict__.pop("training") for module in root.modules()}
    for path, module in root.named_modules():
        module._buffers["training"] = Flag(path)
    try:
        yield
    finally:
        for module, flag in flags.items():
            del module._buffers["training"]
            module.__dict__["training"] = flag


@contextmanager
def watching(record: Callable[..., Any], is_busy: Callable[[], bool]) -> Iterator[None]:
    """Hand calls of tensor factories to `record(function, args, kwargs)`, and raise Untraceable at what a graph would
    lose, except while `is_busy()`."""
    # What a library tells torch.fx not to look into is looked into, but for what is one operator here.
    wrapped = _symbolic_trace._wrapped_fns_to_patch
    kept = {key: home for key, home in wrapped.items() if key[1].endswith(STOCHASTIC_DEPTHS)}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(wrapped, kept, clear=True))
        for name in FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _recorded(getattr(torch, name), record, is_busy)))
        for name in (*EITHER_NUMBER_OR_TENSOR, "finfo", "iinfo"):
            stack.enter_context(mock.patch.object(torch, name, _of_symbols(getattr(torch, name), record)))
        for name, function in [(n, f) for n, f in vars(torch.special).items() if callable(f)]:
            stack.enter_context(mock.patch.object(torch.special, name, _of_symbols(function, record)))
        stack.enter_context(
            mock.patch.object(torch, "is_grad_enabled", _asked_by_users(torch.is_grad_enabled, is_busy))
        )
        enabling = _deciding_mode(torch.set_grad_enabled.__init__)
        stack.enter_context(mock.patch.object(torch.set_grad_enabled, "__init__", enabling))
        stack.enter_context(mock.patch.object(torch, "_check_with", _deciding(torch._check_with)))
        for place, why in LOST.items():
            owner, attribute = _locate(place)
            stack.enter_context(mock.patch.object(owner, attribute, _refusing(owner, attribute, why, is_busy)))
        yield


def _recorded(function: Any, record: Any, is_busy: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if is_busy() else record(function, args, kwargs)

    return call


def _of_symbols(function: Any, record: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(map(is_symbol, (*args, *kwargs.values()))):
            return record(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _asked_by_users(function: Any, is_busy: Any) -> Any:
    """Torch's own layers ask it to choose a fused kernel, which computes the same; a model that asks computes something
    else."""

    def call() -> Any:
        if not is_busy() and not str(sys._getframe(1).f_globals.get("__name__")).startswith(("torch.", "fxcompress.")):
            raise Untraceable("it asks whether gradients are computed, which a graph does not know")
        return function()

    return call


def _deciding_mode(function: Any) -> Any:
    def call(self: Any, mode: Any) -> None:
        function(self, bool(mode))  # C would look into a symbol, which has no inside

    return call


def _deciding(check: Any) -> Any:
    def call(error: Any, condition: Any, message: Any) -> None:
        check(error, bool(condition) if is_symbol(condition) else condition, message)

    return call


def _refusing(owner: Any, attribute: str, why: str, is_busy: Any) -> Any:
    function = vars(owner)[attribute]
    is_classmethod = isinstance(function, (classmethod, ClassMethodDescriptorType))

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_busy():
            raise Untraceable(why)
        return function.__get__(None, first)(*args, **kwargs) if is_classmethod else function(first, *args, **kwargs)

    return classmethod(call) if is_classmethod else call


def _locate(place: str) -> tuple[Any, str]:
    *path, attribute = place.split(".")
    owner: Any = __import__(path[0])
    for part in path[1:]:
        owner = getattr(owner, part)
    return owner, attribute
