"""`log_curves`: zeros, scales and clipping of a net as curves, for TensorBoard and anything like it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fxcompress.acting import sources_of
from fxcompress.calls import bind, spread
from fxcompress.constants import evaluate
from fxcompress.dryrun import untouched
from fxcompress.errors import InputError, ScheduleError
from fxcompress.graph import COMPRESSION, modules_of_type
from fxcompress.looking import looking
from fxcompress.module import CompressedModule
from fxcompress.operators import shape_of
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer


class Writer(Protocol):
    """What takes the values: a `torch.utils.tensorboard.SummaryWriter`, or whatever has its `add_scalar`."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Note one value of one curve."""


@dataclass(frozen=True)
class _Share:
    """So many elements of a tensor out of all of them."""

    path: str
    kind: str
    part: float
    whole: int


def log_curves(net: CompressedModule, writer: Writer, step: int | None = None, *, inputs: Any = None) -> None:
    """Write where pruning and quantization of `net` are now, one scalar a curve and call.

    `sparsity/<tensor>`, for every pruner: the share of the tensor that its mask makes zero, from 0 to 1; 0 while the
    pruner is off. For every quantizer that is on, `scale/<tensor>`: the step of its grid in the tensor's units, the
    mean where there are several; and `clipped/<tensor>`: the share of values, from 0 to 1, that round to an integer
    outside of the grid and saturate. `total/sparsity_of_weights`, `total/clipped_of_activations` and so on are the
    shares among all elements that have a pruner, or a quantizer that is on; `total/quantized_weights` and
    `total/quantized_activations` are the shares of quantizers that are on.

    Args:
        net: what `compress` returned, not a wrapper around it. Its modes, buffers and random state stay as they are.
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with `add_scalar(tag, value, step)`.
        step: the place on the horizontal axis; completed optimizer steps (`net.schedule.steps`) if left out.
        inputs: one batch as for `compress`, on the device of `net`. Clipping of weights is that of the weights as they
            are now; that of activations is what one forward of this batch in evaluation mode shows, and is left out
            without it.

    Training does no work for it; this call computes everything, and waits for the device. Raises ScheduleError if `net`
    is no compressed net, InputError if `writer` has no `add_scalar`, CaptureError if `inputs` do not fit.
    """
    if not isinstance(net, CompressedModule):
        raise ScheduleError(
            f"expected what fxcompress.compress returns, got {type(net).__name__}; pass the net itself, such as "
            "model.module for one that is wrapped"
        )
    if not callable(getattr(writer, "add_scalar", None)):
        raise InputError(
            f"'{type(writer).__name__}' has no add_scalar; pass a torch.utils.tensorboard.SummaryWriter or an object "
            "with add_scalar(tag, value, step)"
        )
    at = net.schedule.steps if step is None else step
    for tag, value in _curves(net, inputs).items():
        writer.add_scalar(tag, value, at)


@torch.no_grad()
def _curves(net: CompressedModule, inputs: Any) -> dict[str, float]:
    sources = sources_of(net)
    quantizers = [(path, q) for path, q in modules_of_type(net, Quantizer) if path in sources]
    shares = {
        "sparsity": list(_zeros(net, sources)),
        "clipped": [*_clipped_weights(net, sources), *_clipped_activations(net, inputs)],
    }
    curves = {f"scale/{_name(path)}": float(q.chosen()[0].mean()) for path, q in quantizers if q.is_enabled}
    for what, found in shares.items():
        curves |= {f"{what}/{_name(s.path)}": s.part / max(s.whole, 1) for s in found}
    for kind in ("weight", "activation"):
        for what, found in shares.items():
            if of_kind := [s for s in found if s.kind == kind]:
                whole = sum(s.whole for s in of_kind)
                curves[f"total/{what}_of_{kind}s"] = sum(s.part for s in of_kind) / max(whole, 1)
        if on := [q.is_enabled for _, q in quantizers if _kind(q) == kind]:
            curves[f"total/quantized_{kind}s"] = sum(on) / len(on)
    return curves


def _zeros(net: CompressedModule, sources: Mapping[str, Any]) -> Iterator[_Share]:
    for path, pruner in modules_of_type(net, Pruner):
        if path in sources:
            shape = shape_of(sources[path])
            whole = math.prod(shape[1:] if pruner.of_activation else shape)
            zeros = 1 - float(pruner.mask.float().mean()) if pruner.is_enabled else 0.0
            yield _Share(path, _kind(pruner), zeros * whole, whole)


def _clipped_weights(net: CompressedModule, sources: Mapping[str, Any]) -> Iterator[_Share]:
    for path, quantizer in modules_of_type(net, Quantizer):
        if path in sources and quantizer.is_enabled and not quantizer.of_activation:
            weight = evaluate(net, sources[path])
            yield _Share(path, "weight", int(quantizer.clipped(weight)), weight.numel())


def _clipped_activations(net: CompressedModule, inputs: Any) -> Iterator[_Share]:
    if inputs is None:
        return
    args, kwargs = spread(inspect.signature(net.forward), bind(net, inputs))
    counts: dict[str, list[tuple[Tensor, int]]] = {}

    def count(path: str, quantizer: Quantizer, x: Tensor) -> None:
        counts.setdefault(path, []).append((quantizer.clipped(x), x.numel()))

    with untouched(net), looking(net, count):
        net.eval()(*args, **kwargs)
    for path, calls in counts.items():
        yield _Share(path, "activation", sum(int(part) for part, _ in calls), sum(whole for _, whole in calls))


def _kind(module: Pruner | Quantizer) -> str:
    return "activation" if module.of_activation else "weight"


def _name(path: str) -> str:
    """The tensor that a pruner or quantizer stands behind."""
    return path.removeprefix(f"{COMPRESSION}.").removesuffix("_pruner").removesuffix("_quantizer")
