"""ONNX Runtime: sessions, which operators its optimizer leaves in float, what masks cost in time."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from fxcompress import files

HAS_INTEGER_KERNEL = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add"}
"""Float operators that ONNX Runtime has integer kernels for, and what its optimizer fuses them to."""

PRECISE = "session.x64quantprecision"
"""The entry of a session's configuration that, set to "1", keeps sums of two products from saturating, slower."""
ERRORS_ONLY = 3
PROFILED_RUNS = 5
WARM_UP = 3
_PROBED = 16


def session(path: Path, optimized: bool = True, threads: int = 0, saved: Path | None = None) -> ort.InferenceSession:
    """A CPU session on the file; `saved` is where to put the optimized graph, `threads` 0 leaves the choice to the
    runtime."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    if saved is not None:
        options.optimized_model_filepath = str(saved)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{saved.name}.data"
        )
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether ONNX Runtime's kernels on this processor add each two products of uint8 and int8 in 16 bits, which
    saturate, as on x86 processors without VNNI; found by computing such a sum."""
    weight = onnx.numpy_helper.from_array(np.full((_PROBED, _PROBED), 127, np.int8), "w")
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, [1, _PROBED])
        for name, kind in (("x", onnx.TensorProto.UINT8), ("y", onnx.TensorProto.INT32))
    ]
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    runtime = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = runtime.run(None, {"x": np.full((1, _PROBED), 255, np.uint8)})
    return bool((sums != _PROBED * 255 * 127).any())


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a model, with its tensors beside it where one file cannot hold them."""
    if sum(len(i.raw_data) for i in model.graph.initializer) <= files.LARGEST_FILE:
        onnx.save(model, file)
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saved tensors are taken out of what is saved
    onnx.save(copy, file, save_as_external_data=True, location=f"{file.name}.data")


def float_operators(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """What the optimizer makes of a file: operators left in float although there is an integer kernel, as `type
    name`, and how many of each integer operator."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        session(path, saved=saved)
        optimized = onnx.load(saved, load_external_data=False)
    float_adds = _float_adds(onnx.load(path, load_external_data=False))
    left = [
        f"{n.op_type} {n.name}"
        for n in optimized.graph.node
        if n.op_type in HAS_INTEGER_KERNEL and (n.op_type != "Add" or _own_name(n.name) in float_adds)
    ]
    integer = Counter(
        n.op_type for n in optimized.graph.node if n.op_type.startswith("QLinear") or n.op_type == "QGemm"
    )
    return tuple(left), dict(sorted(integer.items()))


def readable(model: onnx.ModelProto, name: str) -> str:
    """`name`, or where its integers are narrower than a byte, which Python cannot read, the name of a copy in bytes."""
    zeros = {i.name: i.data_type for i in model.graph.initializer}
    maker = next(n for n in model.graph.node if name in n.output)
    kind = zeros.get(maker.input[2]) if maker.op_type == "QuantizeLinear" else None
    if kind not in _NARROW:
        return name
    copy = f"{name}/bytes"
    model.graph.node.append(onnx.helper.make_node("Cast", [name], [copy], to=_NARROW[kind]))
    return copy


_T = onnx.TensorProto
_NARROW = {_T.INT4: _T.INT8, _T.UINT4: _T.UINT8, _T.INT2: _T.INT8, _T.UINT2: _T.UINT8}


def mask_cost(path: Path, model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> tuple[int, float]:
    """Bytes of the masks on activations in a file, and the share of a run that the runtime spends multiplying by
    them."""
    masks = [i for i in model.graph.initializer if i.name.endswith("_pruner_constants.mask")]
    if not masks:
        return 0, 0.0
    dequantized = _outputs_of(model, "DequantizeLinear", {i.name for i in masks})
    multiplying = {n.name for n in model.graph.node if n.op_type == "Mul" and dequantized & set(n.input)}
    spent, total = 0.0, 0.0
    for name, seconds in _profile(path, feed):
        total += seconds
        spent += seconds if name in multiplying else 0.0
    return sum(int(np.prod(m.dims)) for m in masks), spent / total if total else 0.0


def latencies(paths: Sequence[Path], feed: Mapping[str, np.ndarray], runs: int, threads: int = 0) -> list[float]:
    """Median seconds of a run of each file on `feed` (by position of the inputs), the files taking turns."""
    sessions = [session(path, threads=threads) for path in paths]
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(WARM_UP + runs):
        for runtime, spent in zip(sessions, times, strict=True):
            named = dict(zip((i.name for i in runtime.get_inputs()), feed.values(), strict=True))
            start = time.perf_counter()
            runtime.run(None, named)
            if turn >= WARM_UP:
                spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def _profile(path: Path, feed: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
    """Name in the file and time of every kernel call over a few runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        profiled = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED_RUNS):
            profiled.run(None, dict(feed))
        events = json.loads(Path(profiled.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return [(_own_name(e["name"].removesuffix("_kernel_time")), float(e["dur"])) for e in kernels]


def _own_name(name: str) -> str:
    # The optimizer adds such an ending to the names of nodes it replaces.
    return name.partition("_token_")[0]


def _outputs_of(model: onnx.ModelProto, op_type: str, inputs: set[str]) -> set[str]:
    return {n.output[0] for n in model.graph.node if n.op_type == op_type and n.input[0] in inputs}


def _float_adds(model: onnx.ModelProto) -> set[str]:
    """Names of the additions of floats; others compute shapes."""
    known = [*model.graph.value_info, *model.graph.output]
    floats = {v.name for v in known if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return {n.name for n in model.graph.node if n.op_type == "Add" and n.output[0] in floats}
