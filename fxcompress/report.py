"""The report of a net: bits, zeros, bytes, MACs and BOPs of every weight and activation, and why one is left alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.graph import module_of
from fxcompress.module import CompressedModule
from fxcompress.operators import activation_inputs, is_constant, macs, shape_of, weights_of
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.sharded import refuse_sharded
from fxcompress.shortcuts import sites_for
from fxcompress.shrinking import removable
from fxcompress.sites import Site, find_sites, strip, weight_sources
from fxcompress.tables import text_of
from fxcompress.targets import TARGETS

FLOAT_BITS = 32


@dataclass(frozen=True)
class Row:
    """One weight or activation of one sample. `bytes` counts all elements at `bits`, `sparse_bytes` those that are not
    zero and one bit for each element that tells which are; `macs` and `bops` belong to weights."""

    name: str
    kind: str
    bits: int
    sparsity: float
    bytes: float
    macs: int
    bops: float
    rewritten: bool
    reason: str

    @property
    def elements(self) -> float:
        """How many elements the tensor has."""
        return self.bytes * 8 / self.bits

    @property
    def sparse_bytes(self) -> float:
        """Bytes of the elements that are not zero, and of a bit map."""
        return self.bytes * (1 - self.sparsity) + self.elements / 8


@dataclass(frozen=True)
class Report:
    """All rows of a net. `str()` is the table that `report` prints."""

    rows: tuple[Row, ...]
    masks_bytes: int
    notes: tuple[str, ...] = ()

    def megabits(self) -> float:
        """Memory footprint of weights and activations together without their zeros, in Mbit (arXiv 2110.08271)."""
        return sum(r.bytes * 8 * (1 - r.sparsity) for r in self.rows) / 1e6

    def performance_density(self, metric: float) -> float:
        """`metric` divided by the footprint in Mbit (arXiv 2110.08271)."""
        return metric / self.megabits()

    def summary(self) -> list[str]:
        """Totals, as lines."""
        lines = []
        for kind in ("weight", "activation"):
            rows = [r for r in self.rows if r.kind == kind]
            size = sum(r.bytes for r in rows)
            zeros = sum(r.sparsity * r.elements for r in rows) / max(sum(r.elements for r in rows), 1)
            done, sparse = sum(r.rewritten for r in rows), sum(r.sparse_bytes for r in rows)
            lines.append(
                f"{kind}s: {done} of {len(rows)} rewritten, {size / 1e6:.3f} MB dense, {sparse / 1e6:.3f} MB without "
                f"zeros (with a bit map), {100 * zeros:.1f} % zeros"
            )
        macs, bops = sum(r.macs for r in self.rows), sum(r.bops for r in self.rows)
        lines.append(f"MACs: {macs:,}; BOPs: {bops:.4g}; footprint without zeros: {self.megabits():.3f} Mbit")
        if self.masks_bytes:
            lines.append(
                f"masks on activations: {self.masks_bytes / 1e6:.3f} MB in the exported file and one integer "
                "multiplication each; a general runtime does not skip unstructured zeros, so they make it slower, not "
                "faster (export says by how much)"
            )
        return [*lines, *self.notes]

    def __str__(self) -> str:
        return _render(self)


def report(net: CompressedModule) -> Report:
    """Print and return what stands where in `net` as it is now."""
    found = report_of(net)
    print(found)
    return found


def report_of(net: CompressedModule) -> Report:
    """What stands where in `net` as it is now."""
    refuse_sharded(net, "a report")
    return Report(tuple(rows_of(net)), _mask_bytes(net), (*net.schedule.notes, *_shrinkable(net)))


def rows_of(net: CompressedModule) -> list[Row]:
    """A row for every weight and activation of `net` as it is now."""
    owners = _uses_by_weight(net)
    sites = sites_for(TARGETS[net.schedule.target], net.views())
    rows = [_row(net, s, owners.get(s.name, [])) for s in sites.values()]
    seen = {*sites, *_read_by_sites(sites.values())}
    return rows + [_left_alone(net, name, p) for name, p in net.named_parameters() if p.ndim > 1 and name not in seen]


def _shrinkable(net: CompressedModule) -> Iterator[str]:
    """What `shrink` could still remove."""
    gone = removable(net)
    places = gone.places()
    if not places:
        return
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    left = {name: sizes[name] * math.prod(float(k.float().mean()) for k in kept.values())
            for name, kept in gone.tensors.items() if name in sizes}  # fmt: skip
    saved = sum(sizes[name] - n for name, n in left.items())
    yield (
        f"shrink would remove dead channels of {len(places)} weights, and with them {saved:,.0f} of "
        f"{sum(sizes.values()):,} parameters"
    )


def _read_by_sites(sites: Iterable[Site]) -> Iterator[str]:
    """The parameters that computed weights, which have rows of their own, are computed from."""
    pending, seen = [s.node for s in sites if s.kind == "weight" and is_constant(s.node)], set[Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending += node.all_input_nodes
        if node.op == "get_attr":
            yield str(node.target)


def _left_alone(net: CompressedModule, name: str, weight: Tensor) -> Row:
    owner = name.rpartition(".")[0]
    reason = f"no pass rewrites this weight of {type(net.get_submodule(owner)).__name__}"
    island = _island_around(net, owner)
    if island is not None:
        where = f"island '{island}'" if island else "the model (an island)"
        reason = f"no captured part of {where} reads it ({net.islands[island].reason})"
    return Row(name, "weight", FLOAT_BITS, 0.0, weight.numel() * FLOAT_BITS / 8, 0, 0.0, False, reason)


def _island_around(net: CompressedModule, path: str) -> str | None:
    """The innermost island that a module stands in, if nothing between the two is captured."""
    while path not in net.islands:
        if not path or path in net.regions:
            return None
        path = path.rpartition(".")[0]
    return path


def _row(net: CompressedModule, at: Site, products: list[_Use]) -> Row:
    pruner, quantizer = _compressors(net, at.node)
    bits = quantizer.grid.bits if quantizer is not None and quantizer.is_enabled else FLOAT_BITS
    mask = pruner.mask if pruner is not None and pruner.is_enabled else None
    sparsity = 0.0 if mask is None else 1 - float(mask.float().mean())
    shape = shape_of(at.node)
    elements = math.prod(shape if at.kind == "weight" else shape[1:])
    work = sum(p.macs for p in products)
    bops = sum(p.macs * _bops_of_a_mac(net, p, bits, sparsity) for p in products)
    rewritten = pruner is not None or quantizer is not None
    reason = at.reason or net.schedule.left_alone.get(at.name) or ("" if rewritten else "no rule selects it")
    return Row(at.name, at.kind, bits, sparsity, elements * bits / 8, work, bops, rewritten, reason)


@dataclass(frozen=True)
class _Use:
    """One use of a weight: by which node, along which axis of it, and its multiply-accumulates for one sample."""

    node: Node
    weight: Node
    axis: int
    macs: int


def _bops_of_a_mac(net: CompressedModule, use: _Use, weight_bits: int, sparsity: float) -> float:
    """(1 - p) b_a b_w + b_a + b_w + log2(n k^2), at each of the m n k^2 MACs of an output position (arXiv
    2102.11289)."""
    shape = shape_of(use.weight)
    fan_in = math.prod(shape) // max(shape[use.axis], 1)
    _, quantizer = _compressors(net, strip(net, activation_inputs(use.node)[0]))
    b_a = quantizer.grid.bits if quantizer is not None and quantizer.is_enabled else FLOAT_BITS
    return (1 - sparsity) * b_a * weight_bits + b_a + weight_bits + math.log2(max(fan_in, 1))


def _uses_by_weight(net: CompressedModule) -> dict[str, list[_Use]]:
    """How each weight is used in evaluation, by the name of its site."""
    uses: dict[str, list[_Use]] = {}
    batch = _batch(net)
    for gm in (net.view(variants[0].graph) for variants in net.evaluation_variants.values()):
        names = {s.node: s.name for s in find_sites(gm) if s.kind == "weight"}
        for use in (_Use(n, w, axis, macs(n, w) // batch) for n in gm.graph.nodes for w, axis in weights_of(n)):
            for source, _ in weight_sources(gm, use.weight, use.axis):
                uses.setdefault(names[source], []).append(use)
    return uses


def _batch(net: CompressedModule) -> int:
    """How many samples the example inputs hold: the length of their first tensor, or of the list of them."""
    for value in net.schedule.example_inputs.values():
        if isinstance(value, (list, tuple, Tensor)) and len(value):
            return len(value)
    return 1


def _compressors(net: GraphModule, node: Node) -> tuple[Pruner | None, Quantizer | None]:
    pruner: Any = None
    quantizer: Any = None
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = module_of(net, node)
        if isinstance(module, Pruner):
            pruner = module
        elif isinstance(module, Quantizer):
            quantizer = module
        else:
            break
    return pruner, quantizer


def _mask_bytes(net: CompressedModule) -> int:
    return sum(m.mask.numel() for m in net.modules() if isinstance(m, Pruner) and m.of_activation and m.is_enabled)


def _render(report: Report) -> str:
    """One line a weight and an activation, then totals."""
    table = Table(title="weights and activations")
    for column in ("name", "kind", "bits", "zeros", "bytes", "sparse", "MACs", "BOPs", "rewritten", "reason"):
        table.add_column(column, justify="left" if column in ("name", "kind", "rewritten", "reason") else "right")
    for r in report.rows:
        work = (f"{r.macs:,}", f"{r.bops:,.0f}") if r.macs else ("", "")
        size = (str(r.bits), f"{100 * r.sparsity:.1f} %", f"{r.bytes:,.0f}", f"{r.sparse_bytes:,.0f}")
        table.add_row(r.name, r.kind, *size, *work, "yes" if r.rewritten else "no", r.reason)
    return text_of(table, report.summary())
