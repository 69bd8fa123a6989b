"""Where a graph can be pruned and quantized: its weights and its activations, found on any canonical graph.

A *unit* is what an integer kernel computes in one go: a product or elementwise operator, its batch norm and a fusible
activation behind it. Activations are quantized where a unit ends and wherever a unit takes an input from; they are
pruned where a product's unit ends, unless that is an output of the model.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.fx import GraphModule, Node

from fxcompress.constants import expression
from fxcompress.graph import has_module, module_of, site
from fxcompress.operators import (
    ADDS,
    CATS,
    MASKINGS,
    MULS,
    RECURRENT,
    SOFTMAXES,
    ZEROS,
    activation_inputs,
    called,
    hands_out_floats,
    has_integer_kernel,
    is_activation,
    is_batch_norm,
    is_constant,
    is_fusible_activation,
    is_move,
    is_product,
    is_value_preserving,
    weights_of,
)
from fxcompress.placement import is_written
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

Kind = Literal["weight", "activation"]


@dataclass(frozen=True)
class Site:
    """A weight or an activation that rules can select.

    `names` and `types` are what `match` compares: the tensor's own name, its modules' paths, their classes. `layer`
    is the product that owns it, if any; `is_edge` tells a first or last layer's tensor; `reason` says why it is left
    alone.
    """

    name: str
    kind: Kind
    node: Node
    names: tuple[str, ...]
    types: tuple[str, ...]
    axis: int | None = None
    is_edge: bool = False
    prunable: bool = False
    quantizable: bool = True
    reason: str = ""


def find_sites(gm: GraphModule) -> list[Site]:
    """All sites of a graph, in graph order, each weight once.

    They are kept with the graph and found again only once it has changed: every pass asks before and after.
    """
    state = [(n, n.op, n.target, n.args, n.kwargs, type(module_of(gm, n))) for n in gm.graph.nodes]
    known = gm.graph.__dict__.get("_sites")
    if known is None or known[0] != state:
        known = gm.graph.__dict__["_sites"] = (state, _find_sites(gm))
    return list(known[1])


def _find_sites(gm: GraphModule) -> list[Site]:
    edges = _edge_products(gm)
    weights: dict[Node, Site] = {}
    expressions: dict[str, str] = {}
    operands = [(n, *w) for n in gm.graph.nodes for w in weights_of(n)]
    for user, weight, channels in operands:
        for source, axis in weight_sources(gm, weight, channels):
            known = weights.get(source) or _weight_site(gm, user, source, axis, expressions)
            if axis != known.axis:  # its users count channels along different axes
                known = replace(known, axis=None)
            weights[source] = replace(known, is_edge=known.is_edge or user in edges)
    return [*weights.values(), *_activation_sites(gm, edges)]


def all_sites(graphs: Iterable[GraphModule]) -> dict[str, Site]:
    """The sites of all graphs of a net by name."""
    return {site.name: site for gm in graphs for site in find_sites(gm)}


def unit_end(gm: GraphModule, node: Node) -> Node:
    """The last node of the unit that begins with `node`."""
    if is_product(node):
        node = _sole_user_if(gm, node, is_batch_norm)
    return _sole_user_if(gm, node, is_fusible_activation)


def unit_members(gm: GraphModule, end: Node) -> list[Node]:
    """The nodes of the unit that ends with `end`, last first."""
    members = [end]
    for belongs in (is_fusible_activation, is_batch_norm):
        before = members[-1].args[0] if members[-1].args else None
        if belongs(gm, members[-1]) and isinstance(before, Node) and len(before.users) == 1:
            members.append(before)
    return members


def sources(gm: GraphModule, node: Node) -> Iterator[Node]:
    """The activations whose values `node` is made of, seen through pruners, quantizers and value-preserving
    operators."""
    pending, seen = [node], set[Node]()
    while pending:
        node = strip(gm, pending.pop())
        if node in seen:
            continue
        seen.add(node)
        produced = _producer(node)
        if produced is not node and not is_value_preserving(gm, produced):
            yield from [node] if is_activation(node) else []
        elif is_value_preserving(gm, node) and not _joins_a_fixed_grid(gm, node):
            pending += reversed([n for n in node.all_input_nodes if not _is_size(n)])
        elif is_activation(node) and (node.target not in ZEROS or is_written(gm, node)):
            yield node


def _joins_a_fixed_grid(gm: GraphModule, node: Node) -> bool:
    """Whether `node` concatenates a softmax, whose grid is fixed, with something else, and so needs a grid of its
    own."""
    if called(gm, node) not in CATS:
        return False
    return len({called(gm, strip(gm, n)) in SOFTMAXES for n in node.all_input_nodes}) == 2


def strip(gm: GraphModule, node: Node) -> Node:
    """`node`, or what it was before pruners and quantizers."""
    while isinstance(module_of(gm, node), (Pruner, Quantizer)):
        node = node.args[0]  # type: ignore[assignment]
    return node


def tail(gm: GraphModule, node: Node) -> Node:
    """The last of the pruners and quantizers that stand on `node`."""
    while len(node.users) == 1 and isinstance(module_of(gm, next(iter(node.users))), (Pruner, Quantizer)):
        node = next(iter(node.users))
    return node


def _producer(node: Node) -> Node:
    """The node whose tuple `node` is an item of, else `node` itself."""
    while node.target is operator.getitem and "tensor_meta" not in node.args[0].meta:  # type: ignore[union-attr]
        node = node.args[0]  # type: ignore[assignment]
    return node


def weight_sources(gm: GraphModule, weight: Node, axis: int) -> Iterator[tuple[Node, int | None]]:
    """The tensors that a product's `weight` is made of, seen through what only moves elements, each with the axis that
    lies along `axis` of the weight, None where there is none."""
    pending, seen = [weight], set[Node]()
    while pending:
        node = strip(gm, pending.pop())
        if node in seen:
            continue
        seen.add(node)
        inputs = node.all_input_nodes
        if is_move(node) and inputs and all(map(is_constant, inputs)):
            pending += inputs
        else:
            yield node, axis if node is strip(gm, weight) else _same_axis(node, weight, axis)


def _same_axis(source: Node, operand: Node, axis: int) -> int | None:
    """The axis of `source` that lies along `axis` of `operand`, which was made from it by moving elements."""
    ours, theirs = source.meta.get("tensor_meta"), operand.meta["tensor_meta"]
    if ours is None:
        return None
    along = [k for k, n in enumerate(ours.shape) if n > 1 and ours.stride[k] == theirs.stride[axis]]
    return along[0] if along else None


def _weight_site(gm: GraphModule, user: Node, node: Node, axis: int | None, expressions: dict[str, str]) -> Site:
    is_computed = is_constant(node) and node.op != "get_attr"
    name = _name_of_computed(user, expression(node), expressions) if is_computed else site(node)
    reason = "" if is_constant(node) else "the weight depends on the model's inputs"
    owner = name.rpartition(".")[0]
    types = (type(gm.get_submodule(owner)).__name__,) if has_module(gm, owner) else ()
    names = tuple(dict.fromkeys((name, owner, site(user))))
    return Site(name, "weight", node, names, types, axis, False, not reason, not reason, reason)


def _name_of_computed(user: Node, what: str, expressions: dict[str, str]) -> str:
    """What is computed from parameters is known by the layer that it is the weight of, however often that is called."""
    owner = user.meta.get("owner", ("", ""))[0]
    is_call_of_layer = site(user).removeprefix(f"{owner}_").isdigit()
    name = f"{owner if is_call_of_layer else site(user)}.weight"
    same = expressions.setdefault(name, what) == what
    return name if same else f"{site(user)}.weight"


def _activation_sites(gm: GraphModule, edges: set[Node]) -> Iterator[Site]:
    points: dict[Node, bool] = {}
    prunable, floats = set[Node](), set[Node]()
    scores = _scores(gm)
    for node in gm.graph.nodes:
        if node.target in RECURRENT or (node.target is torch.einsum and weights_of(node)):
            points |= {s: points.get(s, False) for n in activation_inputs(node) for s in sources(gm, n)}
        if not (has_integer_kernel(gm, node) or _joins_a_fixed_grid(gm, node)):
            continue
        end = unit_end(gm, node)
        if end in scores and not (is_product(node) or hands_out_floats(node)):
            continue
        for source in (s for n in activation_inputs(node) for s in sources(gm, n)):
            points[source] = points.get(source, False) or node in edges
        points[end] = points.get(end, False) or node in edges
        if is_product(node):
            prunable.add(end)
        if end in scores and hands_out_floats(node):
            floats.add(end)
    outputs = {s for n in gm.graph.output_node().all_input_nodes for s in sources(gm, n)}
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in sorted(points, key=order.__getitem__):
        members = unit_members(gm, node)
        names = tuple(dict.fromkeys(site(n) for n in members))
        types = tuple(dict.fromkeys(_type_name(gm, n) for n in members))
        reason = "only a softmax reads it, which is computed in float" if node in floats else ""
        is_prunable = node in prunable - outputs
        yield Site(site(node), "activation", node, names, types, None, points[node], is_prunable, not reason, reason)


def _scores(gm: GraphModule) -> set[Node]:
    """What only a softmax reads, seen through what shifts, scales, masks or moves it, from matrix products on.

    Softmax is computed in float, from the float sums that integer kernels of matrix products can hand out as well. A
    grid in between would cost two conversions and spend its range on masks.
    """
    scores = set[Node]()
    for node in reversed(gm.graph.nodes):
        users = [u for u in node.users if u.op != "output"]
        if len(users) == len(node.users) > 0 and all(_reads_scores(gm, user, scores) for user in users):
            scores.add(node)
    return scores


def _reads_scores(gm: GraphModule, user: Node, scores: set[Node]) -> bool:
    if called(gm, user) in SOFTMAXES:
        return True
    hands_on = called(gm, user) in ADDS | MULS | MASKINGS or is_value_preserving(gm, user)
    return user in scores and (hands_on or isinstance(module_of(gm, user), (Pruner, Quantizer)))


def _edge_products(gm: GraphModule) -> set[Node]:
    """Products with no product before them, or none behind them."""
    after_product, before_product = set[Node](), set[Node]()
    for node in gm.graph.nodes:
        if any(n in after_product or is_product(n) for n in node.all_input_nodes):
            after_product.add(node)
    for node in reversed(gm.graph.nodes):
        if any(n in before_product or is_product(n) for n in node.users):
            before_product.add(node)
    return {n for n in gm.graph.nodes if is_product(n) and not (n in after_product and n in before_product)}


def _sole_user_if(gm: GraphModule, node: Node, belongs: object) -> Node:
    user = next(iter(node.users), None)
    return user if user is not None and len(node.users) == 1 and belongs(gm, user) else node  # type: ignore[operator]


def _type_name(gm: GraphModule, node: Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        return type(module_of(gm, node)).__name__
    return str(node.meta.get("owner", ("", ""))[1])


def _is_size(node: Node) -> bool:
    return "tensor_meta" not in node.meta and not any("tensor_meta" in n.meta for n in node.all_input_nodes)
