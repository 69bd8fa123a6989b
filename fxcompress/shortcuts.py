"""Where a target adds a shortcut inside a product's kernel: the product's own result is never rounded there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch.fx import GraphModule, Node

from fxcompress.graph import site
from fxcompress.operators import ADDS, called, is_batch_norm, is_elementwise, is_product
from fxcompress.sites import Site, all_sites
from fxcompress.targets import Target

REASON = "the target adds it inside of the product's kernel, before it rounds"


def sites_for(target: Target, graphs: Iterable[GraphModule]) -> dict[str, Site]:
    """The sites of all graphs of a net by name, as `target` places quantizers."""
    views = list(graphs)
    sites = all_sites(views)
    if target.adds_in_products:
        for name in {name for gm in views for name in _added_in_products(gm)} & set(sites):
            sites[name] = replace(sites[name], quantizable=False, reason=REASON)
    return sites


def _added_in_products(gm: GraphModule) -> Iterator[str]:
    """Of the two inputs of each addition the last one that a product yields and nobody else reads."""
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        if called(gm, node) in ADDS and is_elementwise(gm, node):
            products = [n for n in node.args if isinstance(n, Node) and _is_product_alone(gm, n)]
            if products:
                yield site(max(products, key=order.__getitem__))


def _is_product_alone(gm: GraphModule, node: Node) -> bool:
    """Whether `node` is a product, or its batch norm, that only one node reads."""
    if len(node.users) != 1:
        return False
    before = node.args[0] if is_batch_norm(gm, node) and node.args else None
    return is_product(node) or (isinstance(before, Node) and is_product(before) and len(before.users) == 1)
