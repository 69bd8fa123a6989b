"""How channels flow through operators that have no weights: labels in, labels out."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.flow_tables import (
    ATTENTION,
    ELEMENTWISE,
    GLUS,
    MOVES,
    PRODUCTS_BY_ELEMENT,
    REDUCTIONS,
    SHUFFLES,
    SIZES,
    SPATIAL,
    SUMS,
)
from fxcompress.labels import Labelled, Unions, along_axis, compact, fixed, shared, varying
from fxcompress.operators import (
    CATS,
    MATMULS,
    MULS,
    SOFTMAXES,
    argument,
    called,
    is_dropout,
    shape_of,
)
from fxcompress.symbols import NUMERIC

_COPIES = ("contiguous", "clone", "detach", "float", torch.clone)


class Flow:
    """Labels of what operators without weights yield; ties what they need to be tied."""

    def __init__(self, unions: Unions) -> None:
        self.unions = unions

    def handler(self, gm: GraphModule, node: Node) -> Callable[..., Any] | None:
        """The method that knows what `node` does to channels, None if none does."""
        what = called(gm, node)
        if "tensor_meta" not in node.meta and what in NUMERIC | SIZES:
            return self._move
        if is_dropout(gm, node):
            return self._same
        known = ((MOVES, self._move), (CATS, self._cat), (ELEMENTWISE, self._pointwise), (SUMS, self._sum))
        more = ((PRODUCTS_BY_ELEMENT, self._product), (SPATIAL, self._spatial), (REDUCTIONS, self._reduce))
        last = ((SOFTMAXES, self._softmax), (MATMULS, self._matmul), (GLUS, self._glu))
        rest: Any = (({torch.roll}, self._roll), (SHUFFLES, self._shuffle), (ATTENTION, self._attention))
        return next((method for table, method in (*known, *more, *last, *rest) if what in table), None)

    def _same(self, gm: GraphModule, node: Node, x: Labelled, *_: Any, **__: Any) -> Labelled:
        return x

    def _move(self, gm: GraphModule, node: Node, *args: Any, **kwargs: Any) -> Any:
        if node.target is operator.getitem and isinstance(args[0], Labelled) and not _keeps_order(args[1], args[0]):
            return self.unknown(gm, node, _tensors(args))
        labels = _run(gm, node, args, kwargs, lambda x: x.labels)
        dead = _run(gm, node, args, kwargs, lambda x: x.dead)
        vanishes = all(x.vanishes for x in _tensors(args))
        return _pair(labels, dead, vanishes)

    def _roll(self, gm: GraphModule, node: Node, x: Labelled, shifts: Any, dims: Any = None) -> Any:
        axes = {d % x.labels.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.labels.ndim))}
        return self.unknown(gm, node, (x,)) if axes & set(varying(x.labels)) else x

    def _shuffle(self, gm: GraphModule, node: Node, x: Labelled, groups: int = 0) -> Any:
        count: Any = groups or gm.get_submodule(str(node.target)).groups
        per_group = self.unions.tie_along(x.labels, 1).reshape(-1).expand(x.shape[1]).view(count, -1)
        self.unions.tie(per_group, per_group[:1])  # as many from each group
        return self._move(gm, node, x, *([groups] if groups else []))

    def _cat(self, gm: GraphModule, node: Node, tensors: Any, dim: int = 0) -> Labelled:
        def joined(parts: list[Tensor]) -> Tensor:
            axis = dim % parts[0].ndim
            # What is the same along an axis in all parts is joined once.
            alike = [a for a in range(parts[0].ndim) if a != axis and all(p.stride(a) == 0 for p in parts)]
            shape = list(parts[0].shape)
            for a in alike:
                parts = [p.narrow(a, 0, 1) for p in parts]
            whole = torch.cat(parts, axis)
            return whole.expand([whole.shape[axis] if a == axis else n for a, n in enumerate(shape)])

        parts = [x for x in tensors if isinstance(x, Labelled)]
        dead = joined([x.dead for x in parts])
        return Labelled(joined([x.labels for x in parts]), dead, all(x.vanishes for x in parts))

    def _pointwise(self, gm: GraphModule, node: Node, x: Labelled, *args: Any, **kwargs: Any) -> Labelled:
        keeps_zero = bool((_run(gm, node, (torch.zeros(1), *args), kwargs, lambda v: v.labels) == 0).all())
        return x if keeps_zero else Labelled(x.labels, torch.tensor(False).expand(x.shape), False)

    def _sum(self, gm: GraphModule, node: Node, *args: Any, **kwargs: Any) -> Labelled:
        tensors, numbers = _tensors(args), [a for a in args if not isinstance(a, Labelled)]
        labels = self._joined(tensors)
        shifts = any(not isinstance(n, int | float) or n != 0 for n in numbers)
        dead = torch.stack([d.expand(labels.shape) for d in (x.dead for x in tensors)]).all(0) if not shifts else None
        none = torch.tensor(False).expand(labels.shape)
        return Labelled(labels, none if dead is None else dead, all(x.vanishes for x in tensors) and not shifts)

    def _product(self, gm: GraphModule, node: Node, *args: Any, **kwargs: Any) -> Any:
        tensors = _tensors(args)
        if called(gm, node) not in MULS:
            by_constant = isinstance(args[0], Labelled) and not isinstance(args[1], Labelled)
            if not by_constant:
                return self.unknown(gm, node, args)
        labels = self._joined(tensors)
        dead = torch.stack([x.dead.expand(labels.shape) for x in tensors]).any(0)
        return Labelled(labels, dead, any(x.vanishes for x in tensors))

    def _joined(self, tensors: list[Labelled]) -> Tensor:
        """The labels of an elementwise operator's output: its inputs go together wherever they have the same length."""
        shape = torch.broadcast_shapes(*(x.shape for x in tensors))  # type: ignore[no-untyped-call]
        full = [x.labels[(None,) * (len(shape) - x.labels.ndim)] for x in tensors]
        differing = {a for t in full for a in varying(t)}
        whole: list[Tensor] = []
        for labels in full:
            repeated = [a for a in differing if labels.shape[a] == 1 and shape[a] > 1]
            if repeated:  # one element stands for all channels: it is none of them, and stays
                self.unions.fix(labels)
            else:
                whole.append(labels.expand(shape))
        if not whole:
            return full[0].expand(shape)
        for other in whole[1:]:
            self.unions.tie(compact(whole[0]), compact(other))
        labels = max(whole, key=lambda t: compact(t).numel())
        is_dense = compact(labels).numel() > max(shape)
        return shared(self.unions.roots(labels)) if is_dense else labels

    def _spatial(self, gm: GraphModule, node: Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
        out = shape_of(node)
        if called(gm, node) is F.pad and len(out) > 2 and out[1] > x.shape[1]:
            return self._pad_channels(gm, node, x, *args, **kwargs)
        if len(out) != len(x.shape) or len(out) < 3 or out[:2] != tuple(x.shape[:2]):
            return self.unknown(gm, node, (x,))
        fills = called(gm, node) is F.pad and argument(node, 3, "value") not in (None, 0)
        if fills:
            return self.unknown(gm, node, (x,))
        return self._uniform(x, out, (0, 1))

    def _pad_channels(
        self, gm: GraphModule, node: Node, x: Labelled, pad: Any, mode: str = "constant", **more: Any
    ) -> Any:
        """Channels of zeros around, each free to go, as along the shortcuts of narrow residual networks."""
        channels = tuple(pad[2 * (x.labels.ndim - 2) :][:2])
        if mode != "constant" or more.get("value") not in (None, 0) or any(pad[: -len(channels)]) or len(channels) != 2:
            return self.unknown(gm, node, (x,))
        inner = self.unions.tie_along(x.labels, 1).reshape(-1).expand(x.shape[1])
        whole = torch.cat([self.unions.new(channels[0]), inner, self.unions.new(channels[1])])
        dead = F.pad(compact(x.dead).movedim(1, 0).flatten(1).all(1).expand(x.shape[1]), channels, value=True)
        padded = along_axis(whole, dead, 1, shape_of(node))
        return Labelled(padded.labels, padded.dead, x.vanishes)

    def _uniform(self, x: Labelled, out: tuple[int, ...], kept: tuple[int, ...]) -> Labelled:
        """Labels along the axes `kept`, the same at all places along the others."""
        labels = self.unions.tie_along(x.labels, *kept)
        dead = x.dead
        for axis in range(dead.ndim):
            if axis not in kept:
                dead = compact(dead).all(axis, keepdim=True)
        shape = [n if axis in kept else 1 for axis, n in enumerate(x.shape)]
        return Labelled(labels.expand(out), dead.expand(shape).expand(out), x.vanishes)

    def _reduce(
        self, gm: GraphModule, node: Node, x: Labelled, dim: Any = None, keepdim: bool = False, **more: Any
    ) -> Any:
        dims = range(x.labels.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
        axes = sorted({d % x.labels.ndim for d in dims})
        if more or set(axes) & set(varying(x.labels)):
            return self.unknown(gm, node, (x,))
        labels, dead = x.labels, x.dead
        for axis in reversed(axes):
            labels = labels.narrow(axis, 0, 1) if keepdim else labels.select(axis, 0)
            dead = compact(dead).all(axis, keepdim=keepdim)
        return Labelled(labels, dead.expand(labels.shape), x.vanishes)

    def _softmax(self, gm: GraphModule, node: Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
        dim = getattr(gm.get_submodule(str(node.target)), "dim", None) if node.op == "call_module" else None
        dim = dim if dim is not None else kwargs.get("dim", args[0] if args else None)
        if dim is None or dim % x.labels.ndim in varying(x.labels):
            return self.unknown(gm, node, (x,))
        return Labelled(x.labels, torch.tensor(False).expand(x.shape), False)

    def _matmul(self, gm: GraphModule, node: Node, first: Labelled, second: Labelled) -> Any:
        if (
            not isinstance(first, Labelled)
            or not isinstance(second, Labelled)
            or min(first.labels.ndim, second.labels.ndim) < 3
        ):
            return self.unknown(gm, node, (first, second))
        return self._heads([first, second], shape_of(node))

    def _attention(self, gm: GraphModule, node: Node, *args: Any, **kwargs: Any) -> Any:
        q, k, v = (args + tuple(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        if isinstance(mask, Labelled):
            self.unions.fix(mask.labels)
        return self._heads([q, k, v], shape_of(node))

    def _heads(self, tensors: list[Labelled], out: tuple[int, ...]) -> Labelled:
        """Products of matrices, one a head: whole heads can go, the same ones everywhere."""
        per_head = [self.unions.tie_along(x.labels, *range(x.labels.ndim - 2)) for x in tensors]
        dead = [x.dead.flatten(-2).all(-1)[..., None, None] for x in tensors]
        batch = (*out[:-2], 1, 1)
        for labels in per_head[1:]:
            self.unions.tie(compact(per_head[0].expand(batch)), compact(labels.expand(batch)))
        died = torch.stack([d.expand(batch) for d in (dead[-1:] if len(dead) == 3 else dead)]).any(0)
        vanishes = any(x.vanishes for x in (tensors[-1:] if len(tensors) == 3 else tensors))
        return Labelled(per_head[0].expand(batch).expand(out), died.expand(out), vanishes)

    def _glu(self, gm: GraphModule, node: Node, x: Labelled, dim: int = -1) -> Any:
        axis = gm.get_submodule(str(node.target)).dim if node.op == "call_module" else dim
        (a, gate), (dead, _) = x.labels.chunk(2, axis), x.dead.chunk(2, axis)  # type: ignore[arg-type]
        self.unions.tie(compact(a), compact(gate))
        return Labelled(a, dead, x.vanishes)

    def unknown(self, gm: GraphModule, node: Node, args: Any) -> Any:
        """What nothing is known of keeps all channels it reads, and yields such as stay."""
        for x in _tensors(args):
            self.unions.fix(x.labels)
        return fixed(shape_of(node)) if "tensor_meta" in node.meta else None


def _keeps_order(index: Any, x: Labelled) -> bool:
    """Whether an index leaves the order of channels as it is: whole numbers, slices without a step, and the like."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(p, int | slice | Tensor | type(None) | type(Ellipsis)) for p in parts):
        return False
    taken = [p for p in parts if p is not None]
    stepped = {axis for axis, p in enumerate(taken) if isinstance(p, slice) and p.step not in (None, 1)}
    has_dots = any(p is Ellipsis for p in parts)  # behind which places are not axes
    return not stepped or (not has_dots and not stepped & set(varying(x.labels)))


def _tensors(args: Any) -> list[Labelled]:
    found: list[Labelled] = []
    for a in args:
        found += [a] if isinstance(a, Labelled) else _tensors(a) if isinstance(a, list | tuple) else []
    return found


def _run(gm: GraphModule, node: Node, args: Any, kwargs: Any, part: Callable[[Labelled], Tensor]) -> Any:
    """Call what `node` calls on a part of its labelled arguments."""

    def take(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(take, value)) if not isinstance(value, torch.Size) else value
        if isinstance(value, slice):
            return slice(take(value.start), take(value.stop), take(value.step))
        return part(value) if isinstance(value, Labelled) else value

    args, kwargs = [take(a) for a in args], {k: take(v) for k, v in kwargs.items()}
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args)
    if node.target in _COPIES:
        return args[0]
    if node.target == "view":
        return args[0].reshape(*args[1:])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _pair(labels: Any, dead: Any, vanishes: bool) -> Any:
    """Tensors of labels and of what is dead, put together again; other values as they are."""
    if isinstance(labels, Tensor):
        return Labelled(shared(labels), shared(dead), vanishes)
    if isinstance(labels, list | tuple) and labels and isinstance(labels[0], Tensor):
        return [Labelled(one, other, vanishes) for one, other in zip(labels, dead, strict=True)]
    return labels
