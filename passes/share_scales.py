"""Share scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import has_module, module_of
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
    Leaves alone: concatenations with an input that has no quantizer.
    """

    name: ClassVar[str] = "share-scales"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Point the quantizers of each group to one of them and drop the others."""
        leader = _leaders(gm, _groups(gm))
        todo = [n for n in gm.graph.nodes if n.op == "call_module" and leader.get(str(n.target), n.target) != n.target]
        for node in todo:
            node.target = leader[str(node.target)]
        for path in {p for p, kept in leader.items() if p != kept and has_module(gm, p)}:
            _delete(gm, path)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a concatenation joins two grids."""
        for group in _groups(gm):
            if len(group) > 1:
                raise PassError(f"a concatenation joins the scales of {sorted(group)}")


def _groups(gm: GraphModule) -> list[set[str]]:
    """Paths of the quantizers that meet in each concatenation, where every input has one."""
    groups = []
    for cat in (n for n in gm.graph.nodes if called(gm, n) in CATS):
        ends = [tail(gm, s) for s in sources(gm, cat)]
        if all(isinstance(module_of(gm, end), Quantizer) for end in ends):
            groups.append({str(end.target) for end in ends})
    return groups


def _leaders(gm: GraphModule, groups: list[set[str]]) -> dict[str, str]:
    """For each quantizer in a group the one that serves it: of those joined by any chain of groups the widest, then
    first."""
    parent: dict[str, str] = {}

    def root(path: str) -> str:
        while parent.setdefault(path, path) != path:
            parent[path] = parent[parent[path]]
            path = parent[path]
        return path

    order = {str(n.target): i for i, n in reversed(list(enumerate(gm.graph.nodes))) if isinstance(n, Node)}
    for group in groups:
        for path in group:
            a, b = sorted((root(path), root(min(group, key=order.__getitem__))), key=lambda p: _rank(gm, p, order))
            parent[b] = a
    return {path: root(path) for path in parent}


def _rank(gm: GraphModule, path: str, order: dict[str, int]) -> tuple[int, int]:
    quantizer: Quantizer = gm.get_submodule(path)  # type: ignore[assignment]
    return (-quantizer.grid.bits, order[path])


def _delete(gm: GraphModule, path: str) -> None:
    owner, _, name = path.rpartition(".")
    del gm.get_submodule(owner)._modules[name]
