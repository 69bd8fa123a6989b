"""Runs of a file in every runtime there is, with its quantized tensors handed out."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxcompress.comparison import OFF, ON, OPENVINO
from fxcompress.errors import VerifyError
from fxcompress.runtime import readable, save, session


@dataclass(frozen=True)
class Run:
    """One run: the file's outputs, and its quantized tensors by name, None where the runtime cannot hand them out
    without computing otherwise."""

    runtime: str
    outputs: list[np.ndarray]
    integers: Mapping[str, np.ndarray] | None


def run_everywhere(
    model: onnx.ModelProto, names: Sequence[str], feed: Mapping[str, np.ndarray]
) -> tuple[list[Run], list[str]]:
    """Run `model` in ONNX Runtime without and with optimizations and, if it is installed, in OpenVINO, handing out the
    tensors called `names`; and what is to be said about the runs.

    Raises VerifyError if ONNX Runtime cannot run it.
    """
    own = [o.name for o in model.graph.output]
    with tempfile.TemporaryDirectory() as folder:
        file, exposed = Path(folder) / "file.onnx", Path(folder) / "exposed.onnx"
        save(model, file)
        wanted = _expose(model, names, exposed)
        runs = [_onnxruntime(exposed, runtime, own, wanted, feed) for runtime in (OFF, ON)]
        if importlib.util.find_spec("openvino") is None:
            return runs, ["OpenVINO is not installed: not compared with it"]
        try:
            run = _openvino(file, exposed, own, wanted, feed)
        except Exception as error:  # OpenVINO raises RuntimeError and whatever its bindings raise
            lines = str(error).strip().splitlines()
            return runs, [f"OpenVINO cannot run the file: {lines[-1] if lines else type(error).__name__}"]
    if run.integers is None:
        note = "OpenVINO hands out no quantized tensors, or computes otherwise then: only outputs are compared with it"
        return [*runs, run], [note]
    return [*runs, run], []


def _expose(model: onnx.ModelProto, names: Sequence[str], file: Path) -> dict[str, str]:
    """Write `model` with the tensors called `names` as outputs too; under which name each is handed out."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    wanted = {name: readable(exposed, name) for name in names}
    own = {o.name for o in model.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted.values() if n not in own)
    save(exposed, file)
    return wanted


def _onnxruntime(
    file: Path, runtime: str, own: Sequence[str], wanted: Mapping[str, str], feed: Mapping[str, np.ndarray]
) -> Run:
    try:
        values = session(file, optimized=runtime == ON).run([*own, *wanted.values()], dict(feed))
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        state = "with" if runtime == ON else "without"
        raise VerifyError(f"ONNX Runtime cannot run the file {state} optimizations: {error}") from error
    return Run(runtime, values[: len(own)], dict(zip(wanted, values[len(own) :], strict=True)))


def _openvino(
    file: Path, exposed: Path, own: Sequence[str], wanted: Mapping[str, str], feed: Mapping[str, np.ndarray]
) -> Run:
    """One run on the CPU, in float32 where it is float. OpenVINO's optimizer may fuse otherwise around tensors that are
    handed out, so they count only if the outputs are those of the file as it is, bit for bit."""
    outputs = _openvino_values(file, own, feed)
    try:
        handed_out = _openvino_values(exposed, [*own, *wanted.values()], feed)
    except Exception:  # it runs the file, and cannot hand out what is inside
        return Run(OPENVINO, [outputs[name] for name in own], None)
    is_same = all(np.array_equal(outputs[name], handed_out[name], equal_nan=True) for name in own)
    integers = {name: handed_out[copy] for name, copy in wanted.items()} if is_same else None
    return Run(OPENVINO, [outputs[name] for name in own], integers)


def _openvino_values(file: Path, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import openvino

    core: Any = openvino.Core()
    compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = compiled(dict(feed))
    return {name: np.array(values[compiled.output(name)]) for name in names}
