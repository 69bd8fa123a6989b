"""Labels of channels: integers on the elements of tensors, equal where elements can only be removed together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

FIXED = 0
"""The label of what cannot be removed."""


@dataclass(frozen=True)
class Labelled:
    """A tensor's labels, int64 and of its shape.

    `dead`, bool, of the same shape, tells elements that are zero whatever the model's inputs are. `vanishes` tells
    whether those of a channel are zero once all weights and affine parameters that yield the channel are masked.
    """

    labels: Tensor
    dead: Tensor
    vanishes: bool = True

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.labels.shape


def fixed(shape: tuple[int, ...]) -> Labelled:
    """A tensor no element of which can be removed."""
    return Labelled(torch.tensor(FIXED).expand(shape), torch.tensor(False).expand(shape), False)


def along_axis(labels: Tensor, dead: Tensor, axis: int, shape: tuple[int, ...]) -> Labelled:
    """A tensor with channels along `axis` that masking makes zero."""
    view = [-1 if a == axis else 1 for a in range(len(shape))]
    return Labelled(labels.view(view).expand(shape), dead.expand(len(labels)).view(view).expand(shape))


class Unions:
    """Labels that are tied to each other, as disjoint sets; the least label of a set stands for it."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def new(self, count: int) -> Tensor:
        """So many labels that nothing is tied to."""
        first = len(self._parent)
        self._parent += range(first, first + count)
        return torch.arange(first, first + count)

    def find(self, label: int) -> int:
        """The label that stands for the set of `label`."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Elements at the same place (after broadcasting) go together from now on."""
        one, other = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        differ = one != other
        count = len(self._parent)
        for pair in (one[differ] * count + other[differ]).unique().tolist():
            a, b = self.find(pair // count), self.find(pair % count)
            self._parent[max(a, b)] = min(a, b)

    def fix(self, labels: Tensor) -> None:
        """None of these can be removed."""
        self.tie(compact(labels), torch.tensor(FIXED))

    def roots(self, labels: Tensor) -> Tensor:
        """The labels that stand for the sets of these."""
        small = compact(labels)
        each, place = unique(small)
        found = torch.tensor([self.find(label) for label in each.tolist()], dtype=torch.int64)
        return found[place].expand(labels.shape)

    def tie_along(self, labels: Tensor, *kept: int) -> Tensor:
        """Tie what differs along any other axes than `kept`; returns the labels, of length 1 along those."""
        small = compact(labels)
        others = [axis for axis in range(labels.ndim) if axis not in {k % labels.ndim for k in kept}]
        first = small
        for axis in others:
            first = first.narrow(axis, 0, 1)
        if small.numel() > first.numel():
            self.tie(first, small)
        return first.expand([1 if axis in others else n for axis, n in enumerate(labels.shape)])

    def along(self, labels: Tensor, axis: int) -> Tensor:
        """The label of each place along `axis`, after tying what differs along others."""
        return self.tie_along(labels, axis).reshape(-1).expand(labels.shape[axis])


@dataclass
class Channels:
    """What was found: labels, and where they stand.

    `axes`: the labels along an axis of a parameter or buffer, by path and axis; `producers`: the axis of each weight
    that yields channels; `constants`: that of each bias, and of what else is added; `norms`: the labels of what each
    normalization yields, which may shift channels; `at`: labels of every activation, and
    values of what is none; `needed`: labels that something reads whatever is masked now; `leaking`: labels that a
    product reads although masking does not make them zero.
    """

    unions: Unions = field(default_factory=Unions)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    producers: dict[str, int] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    at: dict[Node, Any] = field(default_factory=dict)
    needed: list[Tensor] = field(default_factory=list)
    leaking: list[Tensor] = field(default_factory=list)

    def labels(self, path: str, axis: int, length: int) -> Tensor:
        """The labels along an axis of a tensor, new ones if nothing knew it before."""
        if (path, axis) not in self.axes:
            self.axes[path, axis] = self.unions.new(length)
        return self.axes[path, axis]

    def removable(self) -> set[int]:
        """Roots of the labels that can go as the masks are now: nothing reads them, or what is read is zero."""
        roots = {r for labels in self.axes.values() for r in self.unions.roots(labels).tolist()}
        needed = {r for labels in self.needed for r in self.unions.roots(labels).tolist()}
        return roots - needed - {FIXED}


def unique(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each label once, ascending, and for every element which one it is."""
    each, place = torch.unique(labels, return_inverse=True)
    return each, place


def compact(t: Tensor) -> Tensor:
    """`t` with one element along axes where all share their memory, so that work is for what differs only."""
    for axis, (length, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        if length > 1 and stride == 0:
            t = t.narrow(axis, 0, 1)
    return t


def shared(t: Tensor) -> Tensor:
    """`t` with one element in memory along axes where all are equal."""
    small = compact(t)
    differing = varying(small)
    for axis in range(small.ndim):
        if axis not in differing and small.shape[axis] > 1:
            small = small.narrow(axis, 0, 1)
    return small.expand(t.shape)


def varying(t: Tensor) -> list[int]:
    """The axes along which values of `t` differ."""
    small = compact(t)
    return [a for a, n in enumerate(small.shape) if n > 1 and bool((small != small.narrow(a, 0, 1)).any())]


def removed_along(removed: Tensor, axis: int) -> Tensor:
    """The places along `axis`, bool, at which all elements are `removed`."""
    small = compact(removed)
    gone = small.movedim(axis, 0).flatten(1).all(1) if small.ndim > 1 else small
    return gone.expand(removed.shape[axis])
