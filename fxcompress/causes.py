"""Why a quantized tensor differs in a runtime, given the runtime's own inputs to that layer.

A cause is not guessed from a difference: the layer is computed again in the way that the cause supposes, and the cause
holds where that gives the runtime's integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.arithmetic import EXACT, PAIR_SATURATED, UNCLIPPED, WRAPPED, Arithmetic
from fxcompress.comparison import CAUSES, FUSION, OVERFLOW, SATURATION, TIE, UNEXPLAINED, UPSTREAM, TensorInRuntime
from fxcompress.layers import Layers, Seen
from fxcompress.module import CompressedModule
from fxcompress.qdq import QUANTIZE_DEQUANTIZE

QDQ = ("QuantizeLinear", "DequantizeLinear")

TIE_WIDTH, TIE_SHARE = 2.0**-7, 2.0**-19
"""How near a half step a value must be for a difference to count as a rounding tie, in steps, and on wide grids as a
share of the grid: a runtime that sums in float32 is off by up to this much where sums are large."""


@dataclass(frozen=True)
class Reference:
    """A frozen graph on given inputs: its outputs and quantized tensors with nothing replaced, how wide ties are at
    each, and the constants that the file stores otherwise, as it stores them."""

    graph: GraphModule
    feeds: Mapping[str, Any]
    outputs: Any
    end_to_end: Mapping[Node, Tensor]
    tie_width: Mapping[Node, float]
    changed: Mapping[str, Tensor]


def reference_of(graph: GraphModule, model: onnx.ModelProto, feeds: Mapping[str, Any]) -> Reference:
    """Run the frozen `graph` on inputs by name, and hold it against the constants that a file of it stores."""
    end_to_end: dict[Node, Tensor] = {}

    def keep(node: Node, seen: Seen) -> None:
        end_to_end[node] = seen.integers

    outputs = Layers(graph, keep).over(feeds)
    behind = _behind_island(graph)
    widths = {node: 1.0 if node in behind else _tie_width(node) for node in end_to_end}
    return Reference(graph, feeds, outputs, end_to_end, widths, dict(_changed_constants(graph, model)))


def _tie_width(node: Node) -> float:
    bounds: Any = node.args[3:5]
    return float(max(TIE_WIDTH, TIE_SHARE * (bounds[1] - bounds[0])))


def compare_tensors(
    reference: Reference, runtime: str, integers: Mapping[Node, np.ndarray], plain: Mapping[Node, TensorInRuntime]
) -> dict[Node, TensorInRuntime]:
    """Each quantized tensor against a runtime's integers, given the runtime's own inputs to that layer.

    `plain` is the same comparison with a runtime that computes node by node, empty where that runtime is compared.
    """
    steps: dict[Node, Mapping[int, int]] = {}
    causes: dict[Node, Counter[str]] = {}
    left: dict[Node, Tensor] = {}

    def see(node: Node, seen: Seen) -> None:
        theirs = _tensor(integers[node])
        difference = theirs - seen.integers
        upstream = (difference == 0) & (reference.end_to_end[node] != theirs)
        steps[node], causes[node] = _histogram(difference), Counter({UPSTREAM: int(upstream.sum())})
        if steps[node].keys() <= {0}:
            return
        agrees = _agrees(seen, theirs, reference.tie_width[node])
        causes[node][TIE] = int((agrees & (difference != 0)).sum())
        if not bool(agrees.all()):
            left[node] = difference.masked_fill(agrees, 0)

    Layers(reference.graph, see, integers).over(reference.feeds)
    _explain(reference, integers, left, causes)
    for node, difference in left.items():
        is_clean = node in plain and plain[node].differing == plain[node].causes.get(TIE, 0)
        by_fusion = int((difference.abs() == 1).sum()) if is_clean else 0
        causes[node][FUSION] += by_fusion
        causes[node][UNEXPLAINED] += int(difference.count_nonzero()) - by_fusion
    return {
        node: TensorInRuntime(
            runtime,
            steps[node],
            _histogram(_tensor(integers[node]) - reference.end_to_end[node]),
            {cause: causes[node][cause] for cause in CAUSES if causes[node][cause]},
        )
        for node in steps
    }


def _explain(
    reference: Reference,
    integers: Mapping[Node, np.ndarray],
    left: dict[Node, Tensor],
    causes: Mapping[Node, Counter[str]],
) -> None:
    """Compute layers again in each way that a cause supposes; where that gives the runtime's integers, count the cause
    and set the differences `left` to 0."""
    suppositions: list[tuple[str, Arithmetic]] = [
        (OVERFLOW, WRAPPED), (SATURATION, PAIR_SATURATED), (SATURATION, UNCLIPPED),
    ]  # fmt: skip
    if reference.changed:  # what the file's own constants explain is neither overflow nor saturation
        suppositions.insert(0, (UNEXPLAINED, EXACT))
    for cause, arithmetic in suppositions:

        def see(node: Node, seen: Seen, cause: str = cause) -> None:
            if node in left:
                agrees = _agrees(seen, _tensor(integers[node]), reference.tie_width[node])
                causes[node][cause] += int(left[node][agrees].count_nonzero())
                left[node].masked_fill_(agrees, 0)

        if any(bool(difference.any()) for difference in left.values()):
            as_stored = replace(arithmetic, constants=reference.changed)
            Layers(reference.graph, see, integers, as_stored).over(reference.feeds)


def _agrees(seen: Seen, theirs: Tensor, tie_width: float) -> Tensor:
    """Where integers are equal or differ by a rounding tie: between two neighbours a runtime may take either where the
    value lies at their middle."""
    agrees = theirs == seen.integers
    differs = ~agrees
    ours = seen.integers[differs]
    difference = theirs[differs] - ours
    steps = seen.ratio[differs].double() + seen.zero_point
    is_tie = (difference.abs() == 1) & ((steps - (ours + difference / 2)).abs() <= tie_width)
    return agrees.masked_scatter_(differs, is_tie)


def _tensor(integers: np.ndarray) -> Tensor:
    return torch.from_numpy(integers.astype(np.int32))


def _histogram(difference: Tensor) -> dict[int, int]:
    if not difference.numel():
        return {}
    low, high = (int(end) for end in difference.aminmax())
    if low == high:
        return {low: difference.numel()}
    counts = torch.bincount((difference - low).flatten()).tolist()  # no wider than the integers, and no sorting
    return {low + i: count for i, count in enumerate(counts) if count}


def _changed_constants(graph: GraphModule, model: onnx.ModelProto) -> Iterator[tuple[str, Tensor]]:
    """Names and stored values of the graph's integers, scales and zero points that a file has under the same name with
    other values. Floats beside them may be others: PyTorch's exporter folds some under the name of the first."""
    quantized = {name for n in model.graph.node if n.op_type in QDQ for name in n.input}
    stored = {i.name: i for i in model.graph.initializer if i.name in quantized}
    for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
        if name in stored:
            ours = tensor.detach().numpy()
            theirs = onnx.numpy_helper.to_array(stored[name]).astype(ours.dtype)
            if theirs.shape == ours.shape and not np.array_equal(theirs, ours):
                yield name, torch.from_numpy(theirs.copy())


def _behind_island(graph: GraphModule) -> set[Node]:
    """The quantized tensors that an island computes: it rounds inside, in float and unseen, so that a tie in it may
    move them by a step."""
    islands = graph.islands if isinstance(graph, CompressedModule) else {}
    found = set[Node]()
    for node in graph.graph.nodes:
        inputs = [n for n in node.all_input_nodes if n.target is not QUANTIZE_DEQUANTIZE]
        if (node.op == "call_module" and node.target in islands) or found.intersection(inputs):
            found.add(node)
    return found
