"""From a trained net to graphs of constants: the frozen graph that computes on integers, and the lowered one for
ONNX."""

from __future__ import annotations

import copy

from torch.fx import GraphModule

from fxcompress.errors import ExportError
from fxcompress.module import CompressedModule
from fxcompress.passes import (
    ConvolveBatchNorm,
    FlattenProducts,
    FoldBatchNorm,
    FoldConstants,
    FoldMasks,
    Freeze,
    IntegerProducts,
    LinearizeProducts,
    LowerToQdq,
    MergeDuplicates,
    MoveActivations,
    QuantizeBias,
    RearrangeWeights,
    RemoveDisabled,
    RemoveNeutral,
)
from fxcompress.pipeline import Hook, Pass, run
from fxcompress.sharded import refuse_sharded

_FROZEN: tuple[Pass, ...] = (
    RemoveDisabled(), RemoveNeutral(), LinearizeProducts(), FoldConstants(), Freeze(), RearrangeWeights(),
    FoldBatchNorm(), ConvolveBatchNorm(), FoldMasks(), QuantizeBias(),
)  # fmt: skip
"""A trained net's way to constants."""


def freeze(net: CompressedModule, after: Hook | None = None) -> GraphModule:
    """A copy of `net` for evaluation whose weights, scales and masks are constants, computing products on integers.

    It computes what the exported file computes, up to how a runtime rounds. `net` itself stays as it was.
    """
    gm = evaluation_copy(net)
    run(gm, [*_FROZEN, IntegerProducts()], after)
    return gm


def lower(net: CompressedModule, after: Hook | None = None) -> GraphModule:
    """A copy of `net` in QDQ form: float operators between quantize-dequantize pairs and stored integers."""
    gm = evaluation_copy(net)
    run(gm, [*_FROZEN, MergeDuplicates(), MoveActivations(), FlattenProducts(), LowerToQdq()], after)
    return gm


def evaluation_copy(net: CompressedModule) -> GraphModule:
    """The graph that `net` runs in evaluation mode, on tensors of its own. Raises ExportError if there is none."""
    if not isinstance(net, CompressedModule):
        raise ExportError(f"expected what fxcompress.compress returns, got {type(net).__name__}")
    refuse_sharded(net, "freezing")
    regions = net.evaluation_variants
    if set(regions) == {""} and not net.islands:
        graph = regions[""][0].graph
        return copy.deepcopy(GraphModule(net, copy.deepcopy(graph), type(net).__name__)).eval()
    twin = copy.deepcopy(net).eval()
    twin.keep(twin.evaluation_variants)
    return twin
