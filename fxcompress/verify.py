"""Compare an exported file, run in ONNX Runtime, with the frozen graph of the net it was made from.

Every quantized tensor is compared given the runtime's own inputs to that layer, so that one rounding difference is seen
once and not in all that follows; outputs are compared end to end as well, where differences add up.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.table import Table
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from fxcompress.errors import VerifyError
from fxcompress.frozen import evaluation_copy, lower
from fxcompress.inputs import bind_example
from fxcompress.module import CompressedModule
from fxcompress.names import output_names, quantized_names
from fxcompress.passes import IntegerProducts
from fxcompress.pipeline import run
from fxcompress.qdq import QUANTIZE_DEQUANTIZE
from fxcompress.runtime import float_operators, mask_cost, readable, session
from fxcompress.tables import text_of

TIE = 2.0**-7
"""How near a half step a value must be, in steps, for a difference to count as a rounding tie: a runtime that sums in
float32 is off by up to this much where sums are large."""


SUMMATION_ULPS = 2.0**10
"""How far float outputs may differ, in units of the last place of the largest: 1e-4 of it."""


@dataclass(frozen=True)
class TensorComparison:
    """One quantized tensor against the runtime: share of equal integers, largest difference in steps, differences
    that are rounding ties and that are not, each with the runtime's optimizations (off, on)."""

    name: str
    elements: int
    equal: tuple[float, float]
    largest: tuple[int, int]
    ties: tuple[int, int]
    unexplained: tuple[int, int]


@dataclass(frozen=True)
class OutputComparison:
    """One output end to end: share equal and largest difference, in the last grid's steps where it lies on one, else in
    float32 units of the last place of its largest value; optimizations (off, on).

    `trained` is the largest difference of the frozen graph from the trained net: folding and bias rounding."""

    name: str
    equal: tuple[float, float]
    largest: tuple[float, float]
    unit: str
    trained: float


@dataclass(frozen=True)
class Verification:
    """What was compared, what the runtime left in float, and what masks on activations cost."""

    path: str
    file_bytes: int
    tensors: tuple[TensorComparison, ...]
    outputs: tuple[OutputComparison, ...]
    float_operators: tuple[str, ...]
    integer_operators: Mapping[str, int]
    mask_bytes: int
    mask_time_share: float
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor is equal but for rounding ties (optimizations off) and within one step (on).

        Where a file has no quantized tensors its outputs must agree to float32's summation error.
        """
        if not self.tensors:
            return all(max(o.largest) <= SUMMATION_ULPS for o in self.outputs)
        return all(t.unexplained[0] == 0 and t.largest[1] <= 1 for t in self.tensors)

    def __str__(self) -> str:
        return _render(self)


def verify(net: CompressedModule, path: str | os.PathLike[str], inputs: Any = None) -> Verification:
    """Run the file at `path` on `inputs` (as for `compress`; by default its example inputs) and compare it with `net`.

    Raises VerifyError if the file was not made from `net`.
    """
    path = Path(path)
    if not path.is_file():
        raise VerifyError(f"no file '{path}'; export the net first")
    feeds = bind_example(net, inputs)
    reference = lower(net).cpu()
    names = quantized_names(reference)
    run(reference, [IntegerProducts()])
    model = onnx.load(path)
    _refuse_other_model(model, set(names.values()), path)
    runs = [_run_exposed(model, list(names.values()), feeds, optimized) for optimized in (False, True)]
    compared = [_Comparison(reference, names, integers).compare(feeds) for integers, _ in runs]
    tensors = tuple(
        TensorComparison(name, off.elements, (off.equal, on.equal), (off.largest, on.largest), (off.ties, on.ties),
                         (off.unexplained, on.unexplained))
        for name, off, on in zip(names.values(), *compared, strict=True)
    )  # fmt: skip
    float_ops, integer_ops = float_operators(path)
    mask_bytes, mask_share = mask_cost(path, model, _feed(model, feeds))
    outputs = _compare_outputs(evaluation_copy(net).cpu(), reference, feeds, [o for _, o in runs])
    notes = tuple(reference.meta.get("notes", ()))
    size = path.stat().st_size
    return Verification(str(path), size, tensors, outputs, float_ops, integer_ops, mask_bytes, mask_share, notes)


@dataclass(frozen=True)
class _Row:
    elements: int
    equal: float
    largest: int
    ties: int
    unexplained: int


class _Comparison(Interpreter):
    """Runs the reference graph, compares each quantized tensor with the runtime's and goes on with the runtime's."""

    def __init__(self, reference: GraphModule, names: Mapping[Node, str], integers: Mapping[str, np.ndarray]) -> None:
        super().__init__(reference)
        self.names, self.integers = names, integers
        self.behind_island = _behind_island(reference)
        self.rows: list[_Row] = []

    def compare(self, feeds: Mapping[str, Any]) -> list[_Row]:
        """One row for each quantized tensor, in graph order."""
        with torch.no_grad():
            self.run(*_positional(self.graph, feeds))
        return self.rows

    def run_node(self, n: Node) -> Any:
        """Run a node; at a quantizer compare and substitute."""
        if n.target is not QUANTIZE_DEQUANTIZE:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, scale, zero_point, qmin, qmax = args
        theirs = torch.from_numpy(self.integers[self.names[n]].astype(np.int32))
        steps = torch.div(x, scale).double()
        ours = (torch.round(steps) + zero_point).clamp(qmin, qmax)
        tie = 1.0 if n in self.behind_island else TIE
        self.rows.append(_row(steps + zero_point, ours, theirs, tie))
        return (theirs.float() - zero_point.float()) * scale


def _behind_island(reference: GraphModule) -> set[Node]:
    """The quantized tensors that an island computes: it rounds inside, in float and unseen, so that a tie in it may
    move them by a step."""
    islands = reference.islands if isinstance(reference, CompressedModule) else {}
    found = set[Node]()
    for node in reference.graph.nodes:
        inputs = [n for n in node.all_input_nodes if n.target is not QUANTIZE_DEQUANTIZE]
        if (node.op == "call_module" and node.target in islands) or found.intersection(inputs):
            found.add(node)
    return found


def _row(steps: Tensor, ours: Tensor, theirs: Tensor, tie: float) -> _Row:
    distance = (ours - theirs).abs()
    differs = distance > 0
    # Between two neighbours the runtime may take either where the value lies at their middle.
    is_tie = differs & (distance == 1) & ((steps - (ours + theirs) / 2).abs() <= tie)
    ties = int(is_tie.sum())
    count = int(differs.sum())
    n = max(ours.numel(), 1)
    return _Row(ours.numel(), 1 - count / n, int(distance.max()) if ours.numel() else 0, ties, count - ties)


def _run_exposed(
    model: onnx.ModelProto, names: list[str], feeds: Mapping[str, Any], optimized: bool
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The integer tensors called `names`, and the outputs, of one run."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    own = [o.name for o in exposed.graph.output]
    wanted = [readable(exposed, name) for name in names]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in own)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exposed.onnx"
        onnx.save(exposed, file)
        try:
            values = session(file, optimized).run(own + wanted, _feed(model, feeds))
        except Exception as error:  # ONNX Runtime has no public base class of its errors
            state = "with" if optimized else "without"
            raise VerifyError(f"ONNX Runtime cannot run the file {state} optimizations: {error}") from error
    return dict(zip(names, values[len(own) :], strict=True)), values[: len(own)]


def _compare_outputs(
    trained: GraphModule, reference: GraphModule, feeds: Mapping[str, Any], runs: list[list[np.ndarray]]
) -> tuple[OutputComparison, ...]:
    ours, theirs = _outputs(reference, feeds), _outputs(trained, feeds)
    nodes = reference.graph.output_node().all_input_nodes
    rows = []
    for i, name in enumerate(output_names(reference)):
        on_grid = nodes[i].target is QUANTIZE_DEQUANTIZE if i < len(nodes) else False
        unit = _scale(reference, nodes[i]) if on_grid else float(ours[i].abs().max()) * 2.0**-23 or 1.0
        gaps = [np.abs(ours[i].numpy() - values[i]) / unit for values in runs]
        equal = tuple(float((gap < 0.5 if on_grid else gap == 0).mean()) for gap in gaps)
        largest = tuple(float(gap.max().round(1)) for gap in gaps)
        gap = round(float((ours[i] - theirs[i]).abs().max()) / unit, 1)
        rows.append(OutputComparison(name, equal, largest, "steps" if on_grid else "ulp", gap))  # type: ignore[arg-type]
    return tuple(rows)


def _outputs(gm: GraphModule, feeds: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        value = gm(*_positional(gm.graph, feeds))
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _scale(gm: GraphModule, node: Node) -> float:
    return float(gm.get_buffer(str(node.args[1].target)))  # type: ignore[union-attr]


def _positional(graph: torch.fx.Graph, feeds: Mapping[str, Any]) -> list[Any]:
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    values = [feeds.get(str(n.target), n.args[0] if n.args else None) for n in placeholders]
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, values)  # type: ignore[no-any-return] # may be written


def _feed(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {i.name: feeds[i.name].detach().cpu().numpy() for i in model.graph.input}


def _refuse_other_model(model: onnx.ModelProto, names: set[str], path: Path) -> None:
    there = {o for node in model.graph.node for o in node.output}
    missing = sorted(names - there)
    if missing:
        raise VerifyError(
            f"'{path}' was not exported from this net: it has no tensor '{missing[0]}'; export the net again"
        )


def _render(found: Verification) -> str:
    """Tensors that differ, then outputs, operators and costs."""
    table = Table(title=f"{found.path}: {found.file_bytes / 1e6:.3f} MB against the frozen graph, ONNX Runtime")
    for column in (
        "quantized tensor",
        "elements",
        "equal off",
        "on",
        "largest off",
        "on",
        "ties off",
        "on",
        "other off",
        "on",
    ):
        table.add_column(column, justify="left" if column.startswith("quantized") else "right")
    for t in found.tensors:
        if min(t.equal) < 1:
            table.add_row(t.name, str(t.elements), *(f"{100 * e:.3f} %" for e in t.equal), *map(str, t.largest),
                          *map(str, t.ties), *map(str, t.unexplained))  # fmt: skip
    same = sum(min(t.equal) == 1 for t in found.tensors)
    lines = [f"{same} of {len(found.tensors)} quantized tensors equal in every element, optimizations off and on"]
    for o in found.outputs:
        lines.append(
            f"output '{o.name}' end to end: {100 * o.equal[0]:.2f} % equal, largest {o.largest[0]:g} {o.unit} (off); "
            f"{100 * o.equal[1]:.2f} %, {o.largest[1]:g} {o.unit} (on); frozen against trained: {o.trained:g} {o.unit}"
        )
    counts = ", ".join(f"{n} {name}" for name, n in found.integer_operators.items())
    lines.append(f"integer operators: {counts or 'none'}; left in float: {', '.join(found.float_operators) or 'none'}")
    if found.mask_bytes:
        lines.append(
            f"masks on activations cost {found.mask_bytes / 1e6:.3f} MB of the file and "
            f"{100 * found.mask_time_share:.0f} % of the run time: a general runtime multiplies by unstructured zeros, "
            "it does not skip them"
        )
    return text_of(table if len(table.rows) else None, [*lines, *found.notes])
