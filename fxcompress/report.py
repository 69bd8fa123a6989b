"""The report of a net: bits, zeros, bytes, MACs and BOPs of every weight and activation, and why one is left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.graph import module_of, site
from fxcompress.module import CompressedModule
from fxcompress.operators import is_product, macs, shape_of, weight_of
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.sites import Site, all_sites, strip
from fxcompress.tables import text_of

FLOAT_BITS = 32


@dataclass(frozen=True)
class Row:
    """One weight or activation of one sample. `bytes` counts dense elements at `bits`; `macs` and `bops` belong to
    weights."""

    name: str
    kind: str
    bits: int
    sparsity: float
    bytes: float
    macs: int
    bops: float
    rewritten: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """All rows of a net. `str()` is the table that `report` prints."""

    rows: tuple[Row, ...]
    masks_bytes: int

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
            elements = sum(r.bytes * 8 / r.bits for r in rows)
            zeros = sum(r.sparsity * r.bytes * 8 / r.bits for r in rows) / max(elements, 1)
            done = sum(r.rewritten for r in rows)
            lines.append(f"{kind}s: {done} of {len(rows)} rewritten, {size / 1e6:.3f} MB, {100 * zeros:.1f} % zeros")
        lines.append(f"BOPs: {sum(r.bops for r in self.rows):.4g}; footprint without zeros: {self.megabits():.3f} Mbit")
        if self.masks_bytes:
            lines.append(
                f"masks on activations: {self.masks_bytes / 1e6:.3f} MB in the exported file and one integer "
                "multiplication each; a general runtime does not skip unstructured zeros, so they make it slower, not "
                "faster (export says by how much)"
            )
        return lines

    def __str__(self) -> str:
        return _render(self)


def report(net: CompressedModule) -> Report:
    """Print and return what stands where in `net` as it is now."""
    found = Report(tuple(rows_of(net)), _mask_bytes(net))
    print(found)
    return found


def rows_of(net: CompressedModule) -> list[Row]:
    """A row for every weight and activation of `net` as it is now."""
    owners = _products_by_weight(net)
    sites = all_sites(net.views())
    rows = [_row(net, s, owners.get(s.name, [])) for s in sites.values()]
    return rows + [_left_alone(net, name, p) for name, p in net.named_parameters() if p.ndim > 1 and name not in sites]


def _left_alone(net: CompressedModule, name: str, weight: Tensor) -> Row:
    owner = type(net.get_submodule(name.rpartition(".")[0])).__name__
    reason = f"no pass rewrites this weight of {owner}"
    return Row(name, "weight", FLOAT_BITS, 0.0, weight.numel() * FLOAT_BITS / 8, 0, 0.0, False, reason)


def _row(net: CompressedModule, at: Site, products: list[Node]) -> Row:
    pruner, quantizer = _compressors(net, at.node)
    bits = quantizer.grid.bits if quantizer is not None and quantizer.is_enabled else FLOAT_BITS
    mask = pruner.mask if pruner is not None and pruner.is_enabled else None
    sparsity = 0.0 if mask is None else 1 - float(mask.float().mean())
    shape = shape_of(at.node)
    elements = math.prod(shape if at.kind == "weight" else shape[1:])
    work = sum(macs(p) // shape_of(p)[0] for p in products)
    bops = sum(_bops(net, p, bits, sparsity) for p in products)
    rewritten = pruner is not None or quantizer is not None
    reason = at.reason or ("" if rewritten else "no rule selects it")
    return Row(at.name, at.kind, bits, sparsity, elements * bits / 8, work, bops, rewritten, reason)


def _bops(net: CompressedModule, product: Node, weight_bits: int, sparsity: float) -> float:
    """m n k^2 ((1 - p) b_a b_w + b_a + b_w + log2(n k^2)) at every output position (arXiv 2102.11289)."""
    fan_in = math.prod(shape_of(weight_of(product))[1:])
    _, quantizer = _compressors(net, strip(net, product.args[0]))  # type: ignore[arg-type]
    b_a = quantizer.grid.bits if quantizer is not None and quantizer.is_enabled else FLOAT_BITS
    per_mac = (1 - sparsity) * b_a * weight_bits + b_a + weight_bits + math.log2(max(fan_in, 1))
    return macs(product) / shape_of(product)[0] * per_mac


def _products_by_weight(net: CompressedModule) -> dict[str, list[Node]]:
    owners: dict[str, list[Node]] = {}
    graphs = [variants[0].graph for variants in net.evaluation_variants.values()]
    for node in (n for graph in graphs for n in graph.nodes):
        if is_product(node):
            owners.setdefault(site(strip(net, weight_of(node))), []).append(node)
    return owners


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
    for column in ("name", "kind", "bits", "zeros", "bytes", "MACs", "BOPs", "rewritten", "reason"):
        table.add_column(column, justify="right" if column in ("bits", "zeros", "bytes", "MACs", "BOPs") else "left")
    for r in report.rows:
        work = (f"{r.macs:,}", f"{r.bops:,.0f}") if r.macs else ("", "")
        size = (str(r.bits), f"{100 * r.sparsity:.1f} %", f"{r.bytes:,.0f}")
        table.add_row(r.name, r.kind, *size, *work, "yes" if r.rewritten else "no", r.reason)
    return text_of(table, report.summary())
