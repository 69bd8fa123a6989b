"""Share scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import module_of
from fxcompress.operators import CATS, called
from fxcompress.quantizer import Quantizer
from fxcompress.sites import sources, tail


@dataclass(frozen=True)
class ShareScales:
    """Give all inputs of a concatenation one quantizer, so that its output lies on their grid without another one.

    Max pooling, reshape, flatten and the like keep values as they are and need no quantizer to share their input's
    scale. The widest grid of the group serves it.

    Before:  %a_quantizer = compression.a_quantizer:Quantizer(%a)
             %b_quantizer = compression.b_quantizer:Quantizer(%b)
             %cat = cat([%a_quantizer, %b_quantizer], 1)
    After:   %a_quantizer = compression.a_quantizer:Quantizer(%a)
             %b_quantizer = compression.a_quantizer:Quantizer(%b)
             %cat = cat([%a_quantizer, %b_quantizer], 1)

    Ensures:  the quantized inputs of every concatenation have one quantizer.
    Leaves alone: concatenations with an input that has no quantizer, or one of a fixed scale.
    """

    name: ClassVar[str] = "share-scales"
    leaders: Mapping[str, str] | None = None
    """Which quantizer serves which; None finds it in the graph. Where a net has a graph a mode, `find_leaders` of all."""

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Point the quantizers of each group to one of them."""
        leaders = find_leaders([gm]) if self.leaders is None else self.leaders
        todo = [n for n in gm.graph.nodes if n.op == "call_module" and leaders.get(n.target, n.target) != n.target]
        for node in todo:
            node.target = leaders[node.target]
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a concatenation joins two grids."""
        for group in _groups(gm):
            if len(group) > 1:
                raise PassError(f"a concatenation joins the scales of {sorted(group)}")


def find_leaders(graphs: Iterable[GraphModule]) -> dict[str, str]:
    """For each quantizer in a group the one that serves it: of those joined by any chain of groups the widest, then
    first."""
    parent: dict[str, str] = {}

    def root(path: str) -> str:
        while parent.setdefault(path, path) != path:
            parent[path] = parent[parent[path]]
            path = parent[path]
        return path

    rank: dict[str, tuple[int, int]] = {}
    for gm in graphs:
        for group in _groups(gm):
            for path in group:
                rank.setdefault(path, (-_bits(gm, path), len(rank)))
                first, second = sorted((root(path), root(group[0])), key=rank.__getitem__)
                parent[second] = first
    return {path: root(path) for path in parent}


def _may_share(gm: GraphModule, end: Node) -> bool:
    quantizer = module_of(gm, end)
    return isinstance(quantizer, Quantizer) and quantizer.fixed_scale is None


def _bits(gm: GraphModule, path: str) -> int:
    quantizer = gm.get_submodule(path)
    assert isinstance(quantizer, Quantizer)
    return quantizer.grid.bits


def _groups(gm: GraphModule) -> list[list[str]]:
    """Paths of the quantizers that meet in each concatenation, where every input has one, in graph order."""
    groups = []
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for cat in (n for n in gm.graph.nodes if called(gm, n) in CATS):
        ends = sorted((tail(gm, s) for s in sources(gm, cat)), key=order.__getitem__)
        if all(_may_share(gm, end) for end in ends):
            groups.append(list(dict.fromkeys(str(end.target) for end in ends)))
    return groups
