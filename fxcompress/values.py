"""Values of a graph's nodes for the example inputs, on tensors that hold no data: shapes, dtypes, numbers."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils import _pytree as pytree

from fxcompress.graph import submodule
from fxcompress.mirror import mirror
from fxcompress.symbols import NUMERIC, DataDependent, Symbol, map_symbols


class Values:
    """Computes what nodes yield. Modules run in evaluation mode on fake parameters, so that no state is touched.

    `busy` tells that modules called meanwhile are none of the capture's.
    """

    def __init__(self, root: nn.Module) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.busy = False
        self._twin = mirror(root)
        for module in self._twin.modules():
            module.training = False
        slots: list[Any] = [slot for m in self._twin.modules() for slot in (m._parameters, m._buffers) if slot]
        for slot, fakes in zip(slots, self.like(slots), strict=True):
            slot.update(fakes)

    def like(self, value: Any) -> Any:
        """`value` with fake tensors in place of its tensors, whose data is never looked at; equal ones stay one."""
        known: dict[int, Tensor] = {}

        def fake(t: Tensor) -> Tensor:
            if id(t) not in known:
                on_meta = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
                known[id(t)] = FakeTensor(self.mode, on_meta, t.device)
            return known[id(t)]

        with self.aside():
            return pytree.tree_map_only(Tensor, fake, value)

    def attribute(self, path: str) -> Any:
        """The fake parameter or buffer at `path`; a plain tensor as a fake one."""
        owner, _, name = path.rpartition(".")
        found = getattr(self._twin.get_submodule(owner), name)
        return found if _is_fake(found) else self.like(found)

    def call(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """What a node with these symbols among its arguments yields. Raises DataDependent where that takes data."""
        args, kwargs = map_symbols((args, kwargs), lambda s: s.value)
        if target in _ON_NUMBERS and not any(isinstance(a, Tensor) for a in args):
            return target(*args)  # the most common calls, spared the tensors' machinery
        if target is F.linear and len({a.dtype for a in args if isinstance(a, Tensor)}) > 1:
            raise TypeError("linear needs tensors of one dtype")  # tensors without data let this pass
        with self._evaluating():
            try:
                if kind == "call_module":
                    return submodule(self._twin, str(target)).forward(*args, **kwargs)
                function = getattr(args[0], target) if kind == "call_method" else target
                return function(*(args[1:] if kind == "call_method" else args), **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                name = getattr(target, "__name__", target)
                raise DataDependent(f"what '{name}' yields depends on the values of a tensor") from None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While this lasts, modules may be called without being captured."""
        was, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = was

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with self.aside(), self.mode, torch.no_grad():
            yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging what fails on tensors without data: it is told in our words."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def note(symbol: Symbol) -> None:
    """Store shape, dtype and device of a symbol that is a tensor on its node, where passes read them."""
    if isinstance(symbol.value, Tensor):
        symbol.node.meta.update(tensor_meta=_extract_tensor_metadata(symbol.value), device=symbol.value.device)


_ON_NUMBERS: frozenset[Any] = NUMERIC | {operator.getitem}


def _is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)
