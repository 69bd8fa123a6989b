"""Where a graph can be pruned and quantized: its weights and its activations, found on any canonical graph.

A *unit* is what an integer kernel computes in one go: a product or elementwise operator, its batch norm and a fusible
activation behind it. Activations are quantized where a unit ends and wherever a unit takes an input from; they are
pruned where a product's unit ends, unless that is an output of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch.fx import GraphModule, Node

from fxcompress.graph import module_of, site
from fxcompress.operators import (
    activation_inputs,
    channel_axis,
    has_integer_kernel,
    is_activation,
    is_batch_norm,
    is_fusible_activation,
    is_product,
    is_value_preserving,
    weight_of,
)
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
    """All sites of a graph, in graph order, each weight once."""
    edges = _edge_products(gm)
    weights: dict[str, Site] = {}
    for product in filter(is_product, gm.graph.nodes):
        found = _weight_site(gm, product, product in edges)
        known = weights.get(found.name)
        if known is not None and known.axis != found.axis:
            found = replace(found, quantizable=False, reason="two products count its channels along different axes")
        elif known is not None and not found.is_edge:
            found = known
        weights[found.name] = found
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
        if is_value_preserving(gm, node):
            pending += reversed([n for n in node.all_input_nodes if not _is_size(n)])
        elif is_activation(node):
            yield node


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


def _weight_site(gm: GraphModule, product: Node, is_edge: bool) -> Site:
    node = strip(gm, weight_of(product))
    name, owner = site(node), site(node).rpartition(".")[0]
    types = (type(gm.get_submodule(owner)).__name__,) if node.op == "get_attr" else ()
    computed = node.op != "get_attr"
    reason = "the weight is computed from other tensors" if computed else ""
    names = (name, owner, site(product))
    return Site(name, "weight", node, names, types, channel_axis(product), is_edge, not computed, not computed, reason)


def _activation_sites(gm: GraphModule, edges: set[Node]) -> Iterator[Site]:
    points: dict[Node, bool] = {}
    prunable = set[Node]()
    for node in gm.graph.nodes:
        if not has_integer_kernel(gm, node):
            continue
        for source in (s for n in activation_inputs(node) for s in sources(gm, n)):
            points[source] = points.get(source, False) or node in edges
        end = unit_end(gm, node)
        points[end] = points.get(end, False) or node in edges
        if is_product(node):
            prunable.add(end)
    outputs = {s for n in gm.graph.output_node().all_input_nodes for s in sources(gm, n)}
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in sorted(points, key=order.__getitem__):
        members = unit_members(gm, node)
        names = tuple(dict.fromkeys(site(n) for n in members))
        types = tuple(dict.fromkeys(_type_name(gm, n) for n in members))
        yield Site(site(node), "activation", node, names, types, None, points[node], node in prunable - outputs)


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
    stack = node.meta.get("nn_module_stack")
    owner = next(reversed(stack.values()))[1] if stack else None
    return getattr(owner, "__name__", "input" if node.op == "placeholder" else "")


def _is_size(node: Node) -> bool:
    return "tensor_meta" not in node.meta and not any("tensor_meta" in n.meta for n in node.all_input_nodes)
