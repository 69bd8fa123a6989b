"""Shrink shapes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxcompress.errors import PassError
from fxcompress.flow_tables import MOVES, SIZES
from fxcompress.graph import site, tensor_at
from fxcompress.operators import CONVOLUTIONS, TRANSPOSED, argument, called, input_of, weight_of
from fxcompress.symbols import ASSUMPTIONS, NUMERIC, assume

Kept = tuple[Tensor | None, ...]
"""Along each axis of a tensor which places stay, bool; None where all do."""


@dataclass(frozen=True)
class ShrinkShapes:
    """Fit numbers in the graph to tensors that have fewer channels: shapes, sizes of parts, groups, assumptions.

    Numbers that the model computes with, such as the scale of attention, stay what they were.

    Before:  %reshape = reshape(%layer_0, (2, 96))
    After:   %reshape = reshape(%layer_0, (2, 64))

    Requires: `kept` and `values` are of this graph, and every operator can be made to yield the shape that is left.
    Ensures:  no number is left that does not fit.
    Leaves alone: what has the right shape already.
    """

    name: ClassVar[str] = "shrink-shapes"
    kept: Mapping[Node, Kept]
    """What stays of each tensor."""
    values: Mapping[Node, Any]
    """What the other nodes yielded before: sizes and numbers."""

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if nothing can make an operator yield the shape that is left."""
        _Rewrites(gm, self.kept, self.values).find()

    def rewrite(self, gm: GraphModule) -> bool:
        """Change the arguments, and note the shapes that are left."""
        todo = _Rewrites(gm, self.kept, self.values).find()
        for node, (target, args, kwargs) in todo.items():
            node.op = "call_function" if callable(target) else node.op
            node.target, node.args, node.kwargs = target, args, kwargs
        for node, kept in self.kept.items():
            if "tensor_meta" in node.meta:
                node.meta["tensor_meta"] = node.meta["tensor_meta"]._replace(shape=torch.Size(_left(node, kept)))
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a number still does not fit."""
        left = _Rewrites(gm, self.kept, self.values).find()
        if left:
            raise PassError(f"'{site(next(iter(left)))}' does not fit the shapes that are left")


def _left(node: Node, kept: Kept) -> list[int]:
    shape = node.meta["tensor_meta"].shape
    return [int(n) if k is None else int(k.sum()) for n, k in zip(shape, kept, strict=True)]


class _Rewrites:
    """What has to change, found by going along the graph with tensors that have shapes only."""

    def __init__(self, gm: GraphModule, kept: Mapping[Node, Kept], old: Mapping[Node, Any]) -> None:
        self.gm, self.kept, self.old = gm, kept, old
        self.now: dict[Node, Any] = {}
        self.todo: dict[Node, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def find(self) -> dict[Node, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        for node in self.gm.graph.nodes:
            self.now[node] = self._visit(node)
        return self.todo

    def _visit(self, node: Node) -> Any:
        if node in self.kept and "tensor_meta" in node.meta:
            if node.op not in ("placeholder", "get_attr"):
                self._fit(node)
            dtype = node.meta["tensor_meta"].dtype  # whole numbers may be indices
            return torch.empty(_left(node, self.kept[node]), dtype=dtype, device="meta")
        if node.target in ASSUMPTIONS:
            return self._fit_assumption(node)
        if node.op == "get_attr":
            return tensor_at(self.gm, str(node.target))
        what = called(self.gm, node)
        if what in MOVES | NUMERIC | SIZES:
            return self._fit_parts(node) if what in (torch.split, torch.chunk) else self._computed(node)
        return None

    def _computed(self, node: Node) -> Any:
        try:
            return self._call(node, node.args)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return None

    def _call(self, node: Node, args: Any) -> Any:
        values, kwargs = map_arg((args, node.kwargs), lambda n: self.now[n])
        values, kwargs = _open(values), _open(kwargs)
        if node.op == "call_module":
            return self.gm.get_submodule(str(node.target))(*values)
        if node.target == "view":
            return values[0].reshape(*values[1:])
        if node.op == "call_method":
            return getattr(values[0], str(node.target))(*values[1:], **kwargs)
        return node.target(*values, **kwargs)  # type: ignore[operator]

    def _fit(self, node: Node) -> None:
        wanted = _left(node, self.kept[node])
        if node.target is F.pad:
            self._fit_padding(node)
            return
        if called(self.gm, node) in MOVES:
            result = self._computed(node)
            if not isinstance(result, Tensor) or list(result.shape) != wanted:
                self._reshape(node, wanted)
            return
        if node.target in CONVOLUTIONS | TRANSPOSED and len(node.args) > 6:
            self._fit_groups(node)
        self._keep_numbers(node)

    def _fit_padding(self, node: Node) -> None:
        """As many channels around as are left of them."""
        source, pad = cast(Node, node.args[0]), argument(node, 1, "pad")
        axis = len(self.kept[source]) - 2
        result, keep = self._computed(node), self.kept[node][1]
        if keep is None or (isinstance(result, Tensor) and list(result.shape) == _left(node, self.kept[node])):
            return
        before, after = pad[2 * axis : 2 * axis + 2]
        left = int(keep[:before].sum()), int(keep[len(keep) - after :].sum())
        fitted = (*pad[: 2 * axis], *left, *pad[2 * axis + 2 :])
        rest = {k: v for k, v in node.kwargs.items() if k != "pad"}
        self._change(node, F.pad, (source, fitted, *node.args[2:]), rest)

    def _reshape(self, node: Node, wanted: list[int]) -> None:
        source: Any = node.args[0]
        if node.target in (torch.reshape, "view"):
            sizes: Any = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
            fitted = tuple(s if self._is(s, n) or s == -1 else n for s, n in zip(sizes, wanted, strict=True))
            spread = not isinstance(node.args[1], tuple | list)
            self._change(node, node.target, (source, *fitted) if spread else (source, fitted), {})
        elif node.target == "expand":
            self._change(node, "expand", (source, *wanted), {})
        elif node.target == "unflatten":
            dim: Any = node.args[1]
            axis = dim % self.now[source].ndim
            count = len(wanted) - self.now[source].ndim + 1
            self._change(node, "unflatten", (source, dim, tuple(wanted[axis : axis + count])), {})
        elif node.target is operator.getitem and isinstance(self.now[source], Tensor):
            self._change(node, operator.getitem, (source, self._fitted_index(source, node.args[1])), {})
        else:
            raise PassError(f"'{site(node)}' ({node.target}) cannot be made to yield the shape {wanted}")

    def _fitted_index(self, source: Node, index: Any) -> Any:
        """Slices and whole numbers that select the places that are left of what they selected."""
        parts = list(index) if isinstance(index, tuple) else [index]
        taken = sum(p is not None and p is not Ellipsis for p in parts)
        axis = 0
        for place, part in enumerate(parts):
            if part is Ellipsis:
                axis += len(self.kept[source]) - taken
            elif part is not None:
                parts[place] = _fitted_part(part, self.kept[source][axis])
                axis += 1
        return tuple(parts) if isinstance(index, tuple) else parts[0]

    def _fit_parts(self, node: Node) -> Any:
        """Parts of a tensor, each as long as what is left of it."""
        dim: Any = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        source = cast(Node, node.args[0])
        axis = dim % self.now[source].ndim
        keep, start, sizes = self.kept[source][axis], 0, []
        for length in (piece.shape[axis] for piece in self.old[node]):
            sizes.append(length if keep is None else int(keep[start : start + length].sum()))
            start += length
        result = self._computed(node)
        if result is not None and [piece.shape[axis] for piece in result] == sizes:
            return result
        self._change(node, torch.split, (source, sizes, dim), {})
        return torch.split(self.now[source], sizes, dim)

    def _fit_groups(self, node: Node) -> None:
        groups, weight = node.args[6], self.now[weight_of(node)]
        if groups == 1 or not isinstance(weight, Tensor):
            return
        read = self.now[input_of(node)].shape[1]
        per_group = read // weight.shape[1] if node.target in CONVOLUTIONS else None
        if per_group is None:  # a transposed convolution: as many groups as its outputs need
            per_group = _left(node, self.kept[node])[1] // weight.shape[1]
        if per_group != groups:
            self._change(node, node.target, (*node.args[:6], per_group, *node.args[7:]), dict(node.kwargs))

    def _keep_numbers(self, node: Node) -> None:
        """What is computed with, and was computed from sizes, is what it was."""

        def old(n: Node) -> Any:
            was, now = self.old.get(n), self.now[n]
            changed = isinstance(was, int | float) and isinstance(now, int | float) and was != now
            return was if changed else n

        args, kwargs = map_arg((node.args, node.kwargs), old)
        if node not in self.todo and (args, kwargs) != (node.args, node.kwargs):
            self._change(node, node.target, args, kwargs)

    def _fit_assumption(self, node: Node) -> None:
        value = map_arg(node.args[0], lambda n: self.now[n])
        if node.target is assume and value is not None and not isinstance(value, Tensor) and value != node.args[1]:
            captured = tuple(value) if isinstance(value, torch.Size) else value
            self._change(node, assume, (node.args[0], captured, *node.args[2:]), dict(node.kwargs))

    def _is(self, size: Any, wanted: int) -> bool:
        return bool((self.now[size] if isinstance(size, Node) else size) == wanted)

    def _change(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.todo[node] = (target, args, kwargs)


def _fitted_part(part: Any, keep: Tensor | None) -> Any:
    if keep is None:
        return part

    def before(place: int) -> int:
        return int(keep[: place if place >= 0 else len(keep) + place].sum())

    if isinstance(part, slice):
        start, stop = part.start, part.stop
        return slice(
            before(start) if isinstance(start, int) else start,
            before(stop) if isinstance(stop, int) else stop,
            part.step,
        )
    return before(part) if isinstance(part, int) else part


def _open(value: Any) -> Any:
    """fx's own lists and dicts as Python's, which operators take."""
    if isinstance(value, dict):
        return {k: _open(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(_open(value.start), _open(value.stop), _open(value.step))
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(map(_open, value)) if type(value) in (list, tuple) else list(map(_open, value))
    return value
