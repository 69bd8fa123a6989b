"""`shrink`: channels that are masked, or that nobody reads, leave the net."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.channels import find_channels
from fxcompress.errors import InputError, ScheduleError
from fxcompress.graph import module_of
from fxcompress.groups import ChannelUnit
from fxcompress.labels import Channels, Labelled, removed_along
from fxcompress.module import CompressedModule
from fxcompress.passes.shrink_shapes import Kept, ShrinkShapes
from fxcompress.pipeline import run
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.sharded import refuse_sharded


def shrink(
    net: CompressedModule, optimizer: torch.optim.Optimizer | None = None, *, multiple: int = 1
) -> CompressedModule:
    """Remove the channels of `net`, in place, that are zero whatever comes in, or that nothing reads; returns `net`.

    Weights, biases, batch norms, masks, scales and the state of the optimizer (`optimizer`, or the one that is
    attached) lose the same channels; parameters stay the same objects, with less data. The net computes what it
    computed before, up to the order of additions, and trains on and exports.

    Args:
        net: what `compress` returned; channels go together where the graph joins them, and stay where that is not
            possible (outputs, layer norms, islands).
        optimizer: whose state, such as momentum, is cut along with the parameters.
        multiple: channels that are left are a multiple of it; some dead ones stay for that. 8 suits most integer
            kernels.

    Raises InputError if `net` is none of ours or `multiple` is no whole number of 1 or more, ScheduleError if channels
    are still to be pruned.
    """
    if not isinstance(net, CompressedModule):
        raise InputError(f"expected what fxcompress.compress returns, got {type(net).__name__}")
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        raise InputError(f"multiple is {multiple!r}; it must be a whole number, 1 or more")
    refuse_sharded(net, "shrinking")
    pending = [event for event in net.schedule.pending() if isinstance(net.schedule.units.get(event.path), ChannelUnit)]
    if pending:
        raise ScheduleError(
            f"{len(pending)} events on channels have not acted, the last after step {pending[-1].step} "
            f"({pending[-1].action} '{pending[-1].tensor}'), and the schedule stands at step {net.schedule.steps}; "
            "shrink once they have"
        )
    gone = removable(net, multiple)
    if gone.places():
        remove(net, gone, optimizer or net.schedule.attached)
    return net


def removable(net: CompressedModule, multiple: int = 1) -> Removal:
    """What `shrink` would remove."""
    channels = find_channels(net.views())
    return Removal(channels, _rounded(channels, channels.removable(), multiple))


def remove(net: CompressedModule, gone: Removal, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Take channels out of everything, and note in `net.removals` which they were."""
    places = gone.places()
    views = list(net.each_variant())
    passes = {gm: ShrinkShapes(gone.kept_of(gm), gone.channels.at) for gm in views}
    for gm, shapes in passes.items():
        shapes.requires(gm)  # refuse before anything has changed
    tensors = dict(gone.tensors)
    for gm in views:
        tensors |= _cuts_of_compression(gm, passes[gm].kept)
    for gm in views:
        run(gm, [passes[gm]])
    for path, kept in tensors.items():
        _shrink_tensor(net, path, kept, optimizer)
    _note_counts(net)
    net.removals.append(places)
    net.recompile()


def repeat(net: CompressedModule, removals: Sequence[Mapping[str, Sequence[int]]]) -> None:
    """Shrink a net that has just been compressed as another one was: `removals` is what that one noted."""
    for removal in removals:
        channels = find_channels(net.views())
        labels = [channels.axes[path, channels.producers[path]][list(places)] for path, places in removal.items()]
        remove(net, Removal(channels, {r for some in labels for r in channels.unions.roots(some).tolist()}))


def _rounded(channels: Channels, removable: set[int], multiple: int) -> set[int]:
    """Those of `removable` that go when every layer keeps a channel, and a multiple."""
    removed = set(removable)
    layers = [channels.unions.roots(channels.axes[path, axis]) for path, axis in channels.producers.items()]
    while max((_keep_some(labels.tolist(), removed, multiple) for labels in layers), default=False):
        pass  # what stays for one layer may leave another without a multiple
    return removed


def _keep_some(labels: list[int], removed: set[int], multiple: int) -> bool:
    """Take labels of a layer out of `removed` until a multiple of channels stays; whether there was need to."""
    counts = Counter(labels)
    left, changed = sum(n for label, n in counts.items() if label not in removed), False
    for label, count in counts.items():
        if left and left % multiple == 0:
            break
        if label in removed:
            removed.discard(label)
            left, changed = left + count, True
    return changed


class Removal:
    """Which places of which tensors are removed with the channels of some labels (roots)."""

    def __init__(self, channels: Channels, removed: set[int]) -> None:
        self.channels = channels
        self.removed = torch.tensor(sorted(removed), dtype=torch.int64)

    def places(self) -> dict[str, list[int]]:
        """By weight the places along the axis of what it yields that are removed."""
        axes = self.channels.producers.items()
        gone = {path: self._is_gone(self.channels.axes[path, axis]).nonzero().flatten().tolist() for path, axis in axes}
        return {path: places for path, places in gone.items() if places}

    @cached_property
    def tensors(self) -> dict[str, dict[int, Tensor]]:
        """By path of a parameter or buffer and axis, the places that stay."""
        kept: dict[str, dict[int, Tensor]] = {}
        for (path, axis), labels in self.channels.axes.items():
            stay = ~self._is_gone(labels)
            if not bool(stay.all()):
                kept.setdefault(path, {})[axis] = stay
        return kept

    def kept_of(self, gm: GraphModule) -> dict[Node, Kept]:
        """By node of a graph, the places that stay along each axis."""
        stored = self.tensors
        found: dict[Node, Kept] = {}
        for node in gm.graph.nodes:
            value = self.channels.at.get(node)
            if node.op == "get_attr" and str(node.target) in stored:
                axes = stored[str(node.target)]
                found[node] = tuple(axes.get(a) for a in range(len(node.meta["tensor_meta"].shape)))
            elif isinstance(value, Labelled) and "tensor_meta" in node.meta:
                found[node] = self._kept(value)
            if isinstance(module_of(gm, node), Pruner | Quantizer) and node.args[0] in found:
                found[node] = found[node.args[0]]
        return found

    def _kept(self, value: Labelled) -> Kept:
        gone = self._is_gone(value.labels)
        if not bool(gone.any()):
            return (None,) * gone.ndim
        along = [~removed_along(gone, axis) for axis in range(gone.ndim)]
        return tuple(None if bool(stay.all()) else stay for stay in along)

    def _is_gone(self, labels: Tensor) -> Tensor:
        return torch.isin(self.channels.unions.roots(labels), self.removed)


def _cuts_of_compression(gm: GraphModule, kept: Mapping[Node, Kept]) -> dict[str, dict[int, Tensor]]:
    """What stays of masks, scales and what was observed, by path and axis."""
    cuts: dict[str, dict[int, Tensor]] = {}
    for node in gm.graph.nodes:
        module: Any = module_of(gm, node)
        if isinstance(module, Pruner | Quantizer) and node in kept:
            cuts |= {f"{node.target}.{name}": axes for name, axes in module.cuts(kept[node]).items() if axes}
    return cuts


def _shrink_tensor(
    net: CompressedModule, path: str, kept: Mapping[int, Tensor], optimizer: torch.optim.Optimizer | None
) -> None:
    owner, _, name = path.rpartition(".")
    module = net.get_submodule(owner)
    value: Tensor = getattr(module, name)
    state = optimizer.state.get(value, {}) if optimizer is not None else {}
    for key, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == value.shape:
            state[key] = cut(entry, kept)
    value.grad = None
    value.data = cut(value.data, kept)


def cut(value: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """`value` with the places along each axis that stay, in the memory format that it has."""
    last = torch.channels_last
    is_channels_last = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=last)
    for axis, stay in kept.items():
        value = value.index_select(axis, stay.nonzero().flatten().to(value.device))
    return value.contiguous(memory_format=last) if is_channels_last else value


def _note_convolution(module: Any, weight: Tensor) -> None:
    """A convolution that lost channels, or whole groups of them."""
    if module.groups > 1:
        was = module.in_channels if module.transposed else module.out_channels
        module.groups = len(weight) * module.groups // was
    one, other = (0, 1) if module.transposed else (1, 0)
    module.in_channels = weight.shape[one] * (module.groups if one == 1 else 1)
    module.out_channels = weight.shape[other] * (module.groups if other == 1 else 1)


def _note_counts(net: nn.Module) -> None:
    """Let modules tell the counts of channels that they have, as people read them."""
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.modules.conv._ConvNd):
            _note_convolution(module, weight)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            module.num_features = len(weight)
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = weight.shape[1]
