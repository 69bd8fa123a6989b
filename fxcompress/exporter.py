"""PyTorch's ONNX exporter, quiet about its own code and without the work that a lowered graph does not need."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

_run_decompositions = ExportedProgram.run_decompositions


def program_of(graph: GraphModule, inputs: Mapping[str, Any], **how: Any) -> torch.onnx.ONNXProgram:
    """What `torch.onnx.export(dynamo=True)` makes of a graph for inputs by name.

    Decomposing traces the whole graph again, half of an export's time, and is left out where it has nothing to do.
    Which composite operators have a translation, only the exporter knows: where one has none, it begins anew.

    Raises torch.onnx.errors.OnnxExporterError where the exporter refuses the graph.
    """
    whole: list[ExportedProgram] = []

    def decomposed(program: ExportedProgram, table: Any = None, **rest: Any) -> ExportedProgram:
        if table is None or not all(_stays(node, table) for node in program.graph.nodes):
            made: ExportedProgram = _run_decompositions(program, table, **rest)
            return made
        whole.append(program)
        return program

    try:
        with mock.patch.object(ExportedProgram, "run_decompositions", decomposed):
            return _export(graph, inputs, how)
    except torch.onnx.errors.OnnxExporterError:
        if not whole:
            raise
    return _export(graph, inputs, how)


def _export(graph: GraphModule, inputs: Mapping[str, Any], how: Mapping[str, Any]) -> torch.onnx.ONNXProgram:
    with _quiet():
        program = torch.onnx.export(graph, kwargs=dict(inputs), dynamo=True, verbose=False, **how)
    assert program is not None
    return program


def optimize(program: torch.onnx.ONNXProgram) -> None:
    """Fold constants and drop what nobody reads, as the exporter does where it is asked to."""
    with _quiet():
        program.optimize()


def _stays(node: Node, table: Mapping[Any, Any]) -> bool:
    """Whether decomposition would leave a node as it is: no operator of the table, none that writes in place, none with
    graphs of its own, and no batch norm."""
    if node.op != "call_function" or getattr(operator, getattr(node.target, "__name__", ""), None) is node.target:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in table:
        return False
    return not node.target._schema.is_mutable and node.target is not torch.ops.aten.batch_norm.default


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch's exporter warns about its own code, and that torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
