"""Compare an exported file, run in ONNX Runtime and others, with the frozen graph of the net it was made from.

Every quantized tensor is compared given the runtime's own inputs to that layer, so that one rounding difference is seen
once and not in all that follows; tensors and outputs are compared end to end as well, where differences add up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.causes import Reference, compare_tensors, reference_of
from fxcompress.comparison import ON, SATURATION, OutputInRuntime, TensorInRuntime
from fxcompress.comparison import OutputComparison as OutputComparison
from fxcompress.comparison import TensorComparison as TensorComparison
from fxcompress.comparison import Verification as Verification
from fxcompress.errors import VerifyError
from fxcompress.frozen import evaluation_copy, lower
from fxcompress.inputs import bind_example, flat_tensors
from fxcompress.layers import positional
from fxcompress.module import CompressedModule
from fxcompress.names import module_behind, output_names, output_nodes, quantized_names
from fxcompress.passes import IntegerProducts
from fxcompress.pipeline import run
from fxcompress.qdq import QUANTIZE_DEQUANTIZE
from fxcompress.runs import Run, run_everywhere
from fxcompress.runtime import PRECISE, float_operators, mask_cost, saturates
from fxcompress.sizes import fitted


def verify(net: CompressedModule, path: str | os.PathLike[str], inputs: Any = None) -> Verification:
    """Run the file at `path` on `inputs` (as for `compress`; by default its example inputs) and compare it with `net`.

    The runtimes are ONNX Runtime with optimizations off and on, and OpenVINO if it is installed.

    Raises VerifyError if the file was not made from `net` or cannot be run.
    """
    path = Path(path)
    if not path.is_file():
        raise VerifyError(f"no file '{path}'; export the net first")
    feeds = bind_example(net, inputs)
    return verify_lowered(net, lower(fitted(net, feeds)).cpu(), path, feeds)


def verify_lowered(net: CompressedModule, graph: GraphModule, path: Path, feeds: Mapping[str, Any]) -> Verification:
    """`verify` for inputs by name, with the lowered graph of `net`, which becomes one of integer products."""
    names = quantized_names(graph)
    run(graph, [IntegerProducts()])
    model = _read(path)
    _refuse_other_model(model, set(names.values()), path)
    feed = _feed(model, feeds, path)
    runs, remarks = run_everywhere(model, list(names.values()), feed)
    reference = reference_of(graph, model, feeds)
    float_ops, integer_ops = float_operators(path)
    mask_bytes, mask_share = mask_cost(path, model, feed)
    tensors = _compare_tensors(reference, names, runs)
    return Verification(
        path=str(path),
        file_bytes=path.stat().st_size,
        runtimes=tuple(r.runtime for r in runs),
        tensors=tensors,
        outputs=_compare_outputs(evaluation_copy(net).cpu(), reference, runs),
        float_operators=float_ops,
        integer_operators=integer_ops,
        mask_bytes=mask_bytes,
        mask_time_share=mask_share,
        changed_constants=tuple(reference.changed),
        notes=(*graph.meta.get("notes", ()), *remarks, *_on_saturation(tensors)),
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's errors have no base class of their own
        raise VerifyError(f"'{path}' is no ONNX file: {error}") from error


def _feed(model: onnx.ModelProto, feeds: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    tensors = flat_tensors(feeds)
    missing = [i.name for i in model.graph.input if i.name not in tensors]
    if missing:
        raise VerifyError(
            f"'{path}' was not exported from this net: it has an input '{missing[0]}'; export the net again"
        )
    return {i.name: tensors[i.name].detach().cpu().numpy() for i in model.graph.input}


def _refuse_other_model(model: onnx.ModelProto, names: set[str], path: Path) -> None:
    there = {o for node in model.graph.node for o in node.output}
    missing = sorted(names - there)
    if missing:
        raise VerifyError(
            f"'{path}' was not exported from this net: it has no tensor '{missing[0]}'; export the net again"
        )


def _compare_tensors(
    reference: Reference, names: Mapping[Node, str], runs: Sequence[Run]
) -> tuple[TensorComparison, ...]:
    found: list[dict[Node, TensorInRuntime]] = []
    first: Mapping[str, np.ndarray] | None = None
    for one in runs:
        if one.integers is None:
            continue
        if first is not None and all(np.array_equal(first[name], one.integers[name]) for name in names.values()):
            found.append({node: replace(of, runtime=one.runtime) for node, of in found[0].items()})
            continue
        integers = {node: one.integers[name] for node, name in names.items()}
        found.append(compare_tensors(reference, one.runtime, integers, found[0] if found else {}))
        first = first or one.integers
    return tuple(
        TensorComparison(name, module_behind(node), found[0][node].elements, tuple(of[node] for of in found))
        for node, name in names.items()
    )


def _on_saturation(tensors: Sequence[TensorComparison]) -> Iterator[str]:
    with_kernels = (found for t in tensors for found in t.runtimes if found.runtime == ON)
    if saturates() and any(found.causes.get(SATURATION) for found in with_kernels):
        yield (
            "this processor has no 8-bit dot products, so ONNX Runtime's kernels add two products in 16 bits, which "
            f"saturate: compress with target='onnxruntime-avx2', or open sessions with {PRECISE}='1'"
        )


def _compare_outputs(trained: GraphModule, reference: Reference, runs: Sequence[Run]) -> tuple[OutputComparison, ...]:
    with torch.no_grad():
        theirs = _tensors(trained(*positional(trained.graph, reference.feeds)))
    ours = _tensors(reference.outputs)
    nodes = output_nodes(reference.graph.graph)
    rows = []
    for i, name in enumerate(output_names(len(ours))):
        on_grid = nodes[i].target is QUANTIZE_DEQUANTIZE if i < len(nodes) else False
        unit = _scale(reference.graph, nodes[i]) if on_grid else float(ours[i].abs().max()) * 2.0**-23 or 1.0
        found = []
        for one in runs:
            gap = np.abs(ours[i].numpy() - one.outputs[i]) / unit
            equal = float((gap < 0.5 if on_grid else gap == 0).mean())
            found.append(OutputInRuntime(one.runtime, equal, float(gap.max().round(1))))
        gap_to_trained = round(float((ours[i] - theirs[i]).abs().max()) / unit, 1)
        rows.append(OutputComparison(name, tuple(found), "steps" if on_grid else "ulp", gap_to_trained))
    return tuple(rows)


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _scale(gm: GraphModule, node: Node) -> float:
    return float(gm.get_buffer(str(node.args[1].target)))  # type: ignore[union-attr]
