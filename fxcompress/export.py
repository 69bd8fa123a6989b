"""Write a trained net as ONNX with QDQ nodes, whole or not at all, and say what a runtime makes of it."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map, tree_map_only

from fxcompress import files
from fxcompress.aliasing import is_private
from fxcompress.errors import ExportError
from fxcompress.exporter import optimize, program_of
from fxcompress.files import whole_folder, writable
from fxcompress.frozen import lower
from fxcompress.graph import writes_in_place
from fxcompress.inputs import bind_example, flat_tensors
from fxcompress.islands import unexportable
from fxcompress.module import CompressedModule
from fxcompress.names import output_names, quantized_names
from fxcompress.onnx_types import Types, integers_of, narrow_types, refuse_types, translations
from fxcompress.operators import COPIES, MOVES, VIEWS, called
from fxcompress.runtime import session
from fxcompress.sizes import fitted
from fxcompress.stored import as_floats, as_integers
from fxcompress.targets import TARGETS
from fxcompress.verify import Verification, verify_lowered

OLDEST_OPSET = 18


def export_onnx(
    net: CompressedModule,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    opset: int = 21,
    dynamic_batch: bool = True,
) -> Verification:
    """Write `net` to `path`, run the file in ONNX Runtime and return what was compared.

    Args:
        net: what `compress` returned, trained past every event of its spec.
        path: the file to write; it appears whole or not at all.
        example_inputs: as for `compress`; by default those that `compress` was given.
        opset: ONNX opset of the file, 18 or newer.
        dynamic_batch: whether the first axis of every input is free.

    Raises ExportError if an event has not acted yet, the opset cannot be written or the path not be written to.
    """
    target = writable(path)
    _refuse_unfinished(net)
    _refuse_opset(opset)
    _refuse_islands(net)
    inputs = bind_example(net, example_inputs)
    lowered = lower(fitted(net, inputs)).cpu()
    _refuse_writes(lowered)
    types = Types(opset, TARGETS[net.schedule.target].narrowest_types)
    refuse_types(lowered, types)
    model = _to_onnx(lowered, inputs, types, dynamic_batch)
    strip_traces(model)
    model.metadata_props["fxcompress.spec"] = str(net.spec)
    model.metadata_props["fxcompress.target"] = net.schedule.target
    model.metadata_props["fxcompress.version"] = metadata.version("fxcompress")
    _write(model, target, opset)
    return verify_lowered(net, lowered, target, inputs)


def _write(model: ir.Model, target: Path, opset: int) -> None:
    """Write a file that ONNX Runtime loads, or none; beyond 2 GB its tensors go in another file beside it."""
    stored = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = f"{target.name}.data" if stored > files.LARGEST_FILE else None
    with whole_folder(target.parent) as folder:
        file = folder / target.name
        ir.save(model, file, external_data=data)
        _refuse_unloadable(file, target, opset)


def _refuse_unloadable(file: Path, target: Path, opset: int) -> None:
    try:
        session(file, optimized=True)
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"'{target}' was not written, since ONNX Runtime cannot load it at opset {opset}: {reason}; pass another "
            "opset (21 is default)"
        ) from error


def _to_onnx(lowered: GraphModule, inputs: dict[str, Any], types: Types, dynamic_batch: bool) -> ir.Model:
    places = [str(node.target) for node in lowered.graph.nodes if node.op == "placeholder"]
    examples = {k: inputs[k] for k in places if k in inputs and flat_tensors({k: inputs[k]})}
    _drop_other_inputs(lowered, set(examples))
    _write_anew(lowered)
    with_floats, floats = as_floats(lowered)
    if dynamic_batch:
        examples = tree_map_only(torch.Tensor, _at_least_two, examples)
    batch = torch.export.Dim("batch")
    try:
        program = program_of(
            with_floats,
            examples,
            opset_version=types.opset,
            dynamic_shapes=tree_map(lambda x: _free(x, batch), examples) if dynamic_batch else None,
            input_names=list(flat_tensors(examples)),
            custom_translation_table=translations(types),
            optimize=False,  # once stored tensors are integers again
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(_why(error, dynamic_batch)) from error
    as_integers(program.model, lowered, floats)
    optimize(program)
    model: ir.Model = program.model
    for value, name in zip(model.graph.outputs, output_names(len(model.graph.outputs)), strict=True):
        value.name = name
    if model.opset_imports.get("") != types.opset:
        raise ExportError(
            f"opset {types.opset} was asked for and PyTorch's exporter wrote {model.opset_imports.get('')}; "
            "ask for that"
        )
    _name_tensors(model, lowered)
    narrow_types(model, lowered, types)
    _part_stored_weights(model)
    return model


def _part_stored_weights(model: ir.Model) -> None:
    """Give each reader of a stored weight integers and a zero point that nothing else has: a session that ONNX Runtime
    opens in its precise mode for x86 makes uint8 of both, and breaks on what is shared. Weights of equal integers and
    other scales are stored once until here."""
    for node in model.graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        weight, _, zero_point = node.inputs
        if weight and zero_point and weight.is_initializer():
            name = weight.name
            if len(weight.uses()) > 1:
                name = f"{weight.name}.{len(weight.uses())}"
                _own(model, node, 0, name)
            if len(zero_point.uses()) > 1:
                _own(model, node, 2, f"{name}_zero_point")


def _own(model: ir.Model, node: ir.Node, index: int, name: str) -> None:
    """Give `node` a constant of its own for one of its inputs."""
    shared = node.inputs[index]
    assert shared is not None
    own = ir.Value(name=name, shape=shared.shape, type=shared.type, const_value=shared.const_value)
    model.graph.register_initializer(own)
    node.replace_input_with(index, own)


def _name_tensors(model: ir.Model, lowered: GraphModule) -> None:
    """Name the integer tensors by module path, after checking that file and graph have the same ones in the same
    order."""
    expected = quantized_names(lowered)
    quantizes = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    found = [_constant(n.inputs[1]) for n in quantizes]
    scales = [float(lowered.get_buffer(str(n.args[1].target))) for n in expected]  # type: ignore[union-attr]
    if found != scales:
        raise ExportError(
            "the file's quantized tensors are not the graph's; this is a fault of fxcompress, please report it"
        )
    for node, name in zip(quantizes, expected.values(), strict=True):
        integers_of(node).name = name


def strip_traces(model: ir.Model) -> None:
    """Drop the stack traces that PyTorch's exporter writes on every node: a tenth of a small file."""
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _constant(value: Any) -> float:
    return float(np.asarray(value.const_value.numpy()))


def _refuse_unfinished(net: CompressedModule) -> None:
    if not isinstance(net, CompressedModule):
        raise ExportError(f"expected what fxcompress.compress returns, got {type(net).__name__}")
    pending = net.schedule.pending()
    if pending:
        first = pending[0]
        raise ExportError(
            f"the spec '{net.spec}' has {len(pending)} events that have not acted yet, the next after step "
            f"{first.step} ({first.action} {first.kind} '{first.tensor}'), and the schedule stands at step "
            f"{net.schedule.steps}; train on (pass optimizer= to compress, or call net.schedule.step() after each "
            "optimizer step)"
        )


def _refuse_writes(lowered: GraphModule) -> None:
    for node in lowered.graph.nodes:
        if writes_in_place(lowered, node) and (state := _stored_under(lowered, node.args[:1])) is not None:
            raise ExportError(
                f"the model changes its own '{state}' in evaluation, which no file can; leave that out in evaluation"
            )


def _stored_under(lowered: GraphModule, values: Any) -> str | None:
    """The parameter or buffer that a value is, or is a view of."""
    while values and isinstance(values[0], Node):
        node = values[0]
        if node.op == "get_attr":
            return str(node.target)
        is_view = called(lowered, node) in VIEWS | MOVES - COPIES | {getattr} or writes_in_place(lowered, node)
        values = node.args[:1] if is_view else ()
    return None


def _refuse_islands(net: CompressedModule) -> None:
    found = unexportable(net.islands)
    if found:
        raise ExportError(
            f"parts of the model run as written, which ONNX cannot hold: {', '.join(found)}; make models of the parts "
            "that can be graphs (a backbone, a head), compress those with the same spec, and export them"
        )


def _refuse_opset(opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"opset {opset!r} cannot be written: PyTorch's exporter writes {OLDEST_OPSET} to {newest}; 21 is default"
        )


def _why(error: Exception, dynamic_batch: bool) -> str:
    cause = str(error.__cause__ or error).strip().splitlines()[0]
    hint = "; if the model fixes its batch size, pass dynamic_batch=False" if dynamic_batch else ""
    return f"PyTorch's ONNX exporter refused the graph: {cause}{hint}"


def _drop_other_inputs(lowered: GraphModule, kept: set[str]) -> None:
    for node in list(lowered.graph.nodes):
        if node.op == "placeholder" and node.target not in kept and not node.users:
            lowered.graph.erase_node(node)
    lowered.recompile()


def _write_anew(lowered: GraphModule) -> None:
    """Let activations that write in place, unseen, write elsewhere: PyTorch's exporter decomposes the former, which is
    a third of MobileNetV2's export."""
    modules: dict[str, list[Node]] = {}
    for node in lowered.graph.nodes:
        if node.op == "call_module" and writes_in_place(lowered, node):
            modules.setdefault(str(node.target), []).append(node)
    for name, calls in modules.items():
        if all(is_private(lowered, node.args[0]) for node in calls):
            lowered.get_submodule(name).inplace = False  # type: ignore[assignment]


def _free(x: Any, batch: Any) -> dict[int, Any] | None:
    return {0: batch} if isinstance(x, torch.Tensor) and x.ndim else None


def _at_least_two(x: torch.Tensor) -> torch.Tensor:
    # An axis of length one would be exported as a constant.
    return torch.cat([x, x]) if x.ndim and len(x) == 1 else x
