"""Look at what the quantizers of activations are called on, without a trace in the net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fxcompress.gates import gated
from fxcompress.graph import modules_of_type
from fxcompress.module import CompressedModule
from fxcompress.quantizer import Quantizer


@contextmanager
def looking(net: CompressedModule, look: Callable[[str, Quantizer, Tensor], None]) -> Iterator[None]:
    """While this lasts, `look(path, quantizer, values)` sees the input of every activation's quantizer that is on."""

    def hook_of(path: str) -> Any:
        def hook(quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
            look(path, quantizer, gated(args[1]) if len(args) > 1 else args[0])

        return hook

    handles = [
        quantizer.register_forward_pre_hook(hook_of(path))
        for path, quantizer in modules_of_type(net, Quantizer)
        if quantizer.is_enabled and quantizer.of_activation
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
