"""Groups of channels that rules prune: of the same weights, each channel going with those it is tied to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.graph import COMPRESSION
from fxcompress.labels import FIXED, Channels
from fxcompress.masks import kept
from fxcompress.pruner import Pruner
from fxcompress.rules import Prune
from fxcompress.scores import scores


@dataclass(frozen=True)
class Group:
    """Channels of one or more weights that are pruned in the same way.

    Channel k is, in every tensor, what has the k-th of `roots` as its label: one row of a weight, several (a head of
    attention), or one in each of many weights (along a residual stream).
    """

    weights: tuple[str, ...]
    roots: tuple[int, ...]

    def __str__(self) -> str:
        others = len(self.weights) - 1
        return f"{self.weights[0]} and {others} more" if others else self.weights[0]


def find_groups(channels: Channels) -> list[Group]:
    """All channels that may be pruned, as groups with the same weights.

    Channels stay that are outputs of the model, that something mixes (layer norm, softmax), or that a product reads
    although masking does not make them zero (behind a sigmoid).
    """
    leaking = {r for labels in channels.leaking for r in channels.unions.roots(labels).tolist()}
    weights: dict[int, list[str]] = {}
    for path, axis in channels.producers.items():
        for root in dict.fromkeys(channels.unions.roots(channels.axes[path, axis]).tolist()):
            if root != FIXED and root not in leaking:
                weights.setdefault(root, []).append(path)
    groups: dict[tuple[str, ...], list[int]] = {}
    for root, paths in weights.items():
        groups.setdefault(tuple(paths), []).append(root)
    return [Group(paths, tuple(roots)) for paths, roots in groups.items()]


@dataclass(frozen=True)
class Masked:
    """The tensors that get a mask for channels: parameters by path with the axis and its length, normalizations by
    path with their number of channels; `rules` are those of weights."""

    parameters: Mapping[str, tuple[int, int]]
    norms: Mapping[str, int]
    rules: Mapping[str, Prune]


def masked_by(channels: Channels, groups: Iterable[tuple[Group, Prune | None]]) -> Masked:
    """Everything that keeps a channel of these groups from being zero: weights, what is added, normalizations."""
    ruled = list(groups)
    roots = torch.tensor(sorted({root for group, _ in ruled for root in group.roots}), dtype=torch.int64)

    def has(labels: Tensor) -> bool:
        return bool(torch.isin(channels.unions.roots(labels), roots).any())

    stored = {**channels.producers, **channels.constants}
    lengths = {path: (axis, len(channels.axes[path, axis])) for path, axis in stored.items()}
    parameters = {path: place for path, place in lengths.items() if has(channels.axes[path, place[0]])}
    rules = {weight: rule for group, rule in ruled for weight in group.weights if rule is not None}
    return Masked(parameters, {path: len(labels) for path, labels in channels.norms.items() if has(labels)}, rules)


@dataclass(frozen=True)
class ChannelUnit:
    """What one event prunes together: the channels of a group, in the masks of everything that has them.

    `channels` gives, for each place of the mask of a pruner (by path), which channel it belongs to, -1 for none;
    `weights` are the pruners whose weights decide, with the axis that counts channels.
    """

    channels: Mapping[str, Tensor]
    weights: Mapping[str, int]
    size: int
    rule: Prune

    @property
    def pruners(self) -> tuple[str, ...]:
        """Those of the group's weights."""
        return tuple(self.weights)

    def scores(self, net: nn.Module, values: Mapping[str, Tensor], draw: str) -> Tensor:
        """One for each channel: of each weight, relative to its mean channel, and summed over weights.

        Magnitudes count by their Euclidean norm, other criteria by their sum.
        """
        total: Tensor | None = None
        for path, axis in self.weights.items():
            pruner: Any = net.get_submodule(path)
            each = scores(self.rule.criterion, values[path], getattr(pruner, "sensitivity", None), f"{draw} {path}")
            is_norm = self.rule.criterion == "magnitude"
            rows = (each.square() if is_norm else each).movedim(axis, 0).flatten(1).sum(1)
            places = self.channels[path].to(rows.device)
            score = torch.zeros(self.size, device=rows.device)
            score.index_add_(0, places[places >= 0], rows[places >= 0])
            score = score.sqrt() if is_norm else score
            score = score / score.abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
            total = score if total is None else total + score.to(total.device)
        assert total is not None
        return total

    def entries(self, net: nn.Module) -> int:
        """Its channels."""
        return self.size

    def choose(self, scores: Tensor, sparsity: float) -> Tensor:
        """Exactly so many channels."""
        return kept(scores, sparsity)

    def keep(self, net: nn.Module, stays: Tensor) -> None:
        """Write them to every mask that has them."""
        for path, channels in self.channels.items():
            pruner: Any = net.get_submodule(path)
            places = channels.to(pruner.mask.device)
            of_group = places >= 0
            pruner.mask.view(-1)[of_group] = stays.to(places.device)[places[of_group]]
            pruner.enable()

    def all_pruners(self, net: nn.Module) -> list[Pruner]:
        """Of weights, of what is added, and behind normalizations."""
        pruners: Any = [net.get_submodule(path) for path in self.channels]
        return list(pruners)


def units(channels: Channels, groups: Iterable[tuple[Group, Prune]]) -> Iterator[ChannelUnit]:
    """What an event of each group acts on, and the rule for it."""
    stored = {**channels.producers, **channels.constants}
    places = {f"{COMPRESSION}.{path}_pruner": channels.axes[path, axis] for path, axis in stored.items()}
    places |= {f"{COMPRESSION}.{path}_channels": labels for path, labels in channels.norms.items()}
    ruled = list(groups)
    known = {root: (g, k) for g, (group, _) in enumerate(ruled) for k, root in enumerate(group.roots)}
    at: list[dict[str, Tensor]] = [{} for _ in ruled]
    for path, labels in places.items():
        found = [known.get(root, (-1, -1)) for root in channels.unions.roots(labels).tolist()]
        for of in {g for g, _ in found if g >= 0}:
            at[of][path] = torch.tensor([k if g == of else -1 for g, k in found])
    for (group, rule), masks in zip(ruled, at, strict=True):
        weights = {f"{COMPRESSION}.{path}_pruner": channels.producers[path] for path in group.weights}
        yield ChannelUnit(masks, weights, len(group.roots), rule)
