"""Bias correction: biases take up the mean error that rounding the weights makes in each channel (arXiv 1906.04721,
section 4.2, with means of real inputs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.dryrun import observe_only
from fxcompress.graph import COMPRESSION, add_module, has_module, module_of, tensor_at
from fxcompress.module import CompressedModule
from fxcompress.operators import BATCH_NORMS, PRODUCTS, TRANSPOSED, bias_of, input_of, shape_of, weight_of
from fxcompress.quantizer import Quantizer
from fxcompress.ranks import many, total
from fxcompress.sharded import whole, write
from fxcompress.sites import strip

_HOME = f"{COMPRESSION}.weight_errors"
_RUNNING_MEAN = ".running_mean"


@torch.no_grad()
def correct_biases(net: CompressedModule, batches: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Shift biases by the mean error of each channel over `batches` (inputs by parameter name), in evaluation mode.

    The shift goes into the product's own bias, or into the running mean of the batch norm behind it; a product that has
    neither is left alone. Returns the names of what was shifted.
    """
    with _watched(net) as watched:
        observe_only(net, batches, (False,))
    if many(net.schedule.group):
        total((t for errors in watched.values() for e in errors for t in (e.total, e.count)), net.schedule.group)
    seen = {path: errors for path, errors in watched.items() if any(e.count for e in errors)}
    for path, errors in seen.items():
        mean = torch.stack([e.total for e in errors]).sum(0) / torch.stack([e.count for e in errors]).sum()
        tensor = tensor_at(net, path)
        write(tensor, whole(tensor) + (mean if path.endswith(_RUNNING_MEAN) else -mean))
    return tuple(seen)


class WeightError(nn.Module):
    """Sums what a product yields for the rounding errors of its weight: `total` a channel, over `count` places."""

    total: Tensor
    count: Tensor

    def __init__(self, function: Any, channels: int, axis_from_end: int) -> None:
        super().__init__()
        self.function, self.axis_from_end = function, axis_from_end
        self.register_buffer("total", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, rounded: Tensor, weight: Tensor, options: Mapping[str, Any]) -> None:
        """Add one call's."""
        error = self.function(x, rounded - weight, None, **options).movedim(-self.axis_from_end, 0).flatten(1)
        self.total += error.sum(1)
        self.count += error.shape[1]


@contextmanager
def _watched(net: CompressedModule) -> Iterator[dict[str, list[WeightError]]]:
    """While this lasts, products with quantized weights sum their errors; by what can take them up."""
    watched: dict[str, list[WeightError]] = {}
    nodes: list[Node] = []
    try:
        for gm in net.each_variant():
            for path, product in _shiftable(gm):
                nodes.append(_watch(gm, product))
                error: Any = net.get_submodule(str(nodes[-1].target))
                watched.setdefault(path, []).append(error)
        net.recompile()
        yield watched
    finally:
        for node in nodes:
            node.graph.erase_node(node)
        if has_module(net, _HOME):
            delattr(net.get_submodule(COMPRESSION), _HOME.rpartition(".")[2])
        net.recompile()


_NAMES = ("stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = ("stride", "padding", "output_padding", "groups", "dilation")


def _shiftable(gm: GraphModule) -> list[tuple[str, Node]]:
    """Products with quantized weights, each with the path of what takes up its error."""
    products = [
        n for n in gm.graph.nodes if n.target in PRODUCTS and isinstance(module_of(gm, weight_of(n)), Quantizer)
    ]
    return [(path, n) for n in products if (path := _shifted(gm, n)) is not None]


def _watch(gm: GraphModule, node: Node) -> Node:
    weight: Node = weight_of(node)
    rank = len(shape_of(weight)) - 2
    names = _TRANSPOSED_NAMES if node.target in TRANSPOSED else _NAMES
    options = {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs}
    options = {k: v for k, v in options.items() if k not in ("input", "weight", "bias")}
    path = f"{_HOME}.{node.name}"
    if not has_module(gm, path):
        error = WeightError(node.target, shape_of(node)[-rank - 1], rank + 1)
        add_module(gm, path, error.to(node.meta.get("device", "cpu")))
    with gm.graph.inserting_after(node):
        return gm.graph.call_module(path, (input_of(node), weight, weight.args[0], options))


def _shifted(gm: GraphModule, node: Node) -> str | None:
    """The path of what takes up the error of a product: its bias, or the running mean of the batch norm behind it."""
    bias = bias_of(node)
    if isinstance(bias, Node):
        source = strip(gm, bias)
        return str(source.target) if source.op == "get_attr" else None
    users = [module_of(gm, user) for user in node.users]
    norm = users[0] if len(users) == 1 else None
    if isinstance(norm, BATCH_NORMS) and norm.running_mean is not None:
        return f"{next(iter(node.users)).target}{_RUNNING_MEAN}"
    return None
