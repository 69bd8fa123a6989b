"""The operators of a frozen graph as ONNX has them, and the integer types of the file: as narrow as the opset allows.

A weight of b bits is stored in the narrowest type that has them. An activation whose width no type has goes in the next
wider one, and its integers are clipped: `QuantizeLinear -> Clip -> DequantizeLinear`. Runtimes clip integers of 8 and
32 bits, so widths below 8 go in 8 bits, and those of 9 to 15 are clipped as int32 on their way from 16 bits to 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx.numpy_helper import from_array
from onnxscript import opset18, opset21
from torch.fx import GraphModule, Node

from fxcompress.errors import ExportError
from fxcompress.graph import site, tensor_at
from fxcompress.qdq import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE_DEQUANTIZE, is_blockwise

TYPES = {
    (2, True): ir.DataType.INT2, (2, False): ir.DataType.UINT2, (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4, (8, True): ir.DataType.INT8, (8, False): ir.DataType.UINT8,
    (16, True): ir.DataType.INT16, (16, False): ir.DataType.UINT16,
}  # fmt: skip
_FIRST_OPSET = {2: 25, 4: 21, 8: 18, 16: 21}
"""The opset from which on integers of this width are quantized and dequantized."""
_WIDE_FROM = 21
"""The opset from which on there are 16-bit integers and scales for blocks."""


@dataclass(frozen=True)
class Types:
    """The integer types of a file of this opset, none narrower than `narrowest` for weights and for activations."""

    opset: int
    narrowest: tuple[int, int]

    def for_weight(self, bits: int) -> int:
        """The width of the type that holds a weight's integers."""
        least = max(bits, self.narrowest[0])
        return next(width for width, first in _FIRST_OPSET.items() if width >= least and self.opset >= first)

    def for_activation(self, stored: ir.DataType, qmin: int, qmax: int) -> tuple[ir.DataType, bool]:
        """The type of an activation whose integers torch stores as `stored`, and whether they are clipped to bounds
        that are not the type's own."""
        signed = stored in (ir.DataType.INT8, ir.DataType.INT16)
        for width, first in _FIRST_OPSET.items():
            kind = TYPES[width, signed]
            if (qmin, qmax) == _bounds(width, signed) and width >= self.narrowest[1] and self.opset >= first:
                return kind, False
        return stored, True


def _bounds(width: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)


def translations(types: Types) -> dict[Any, Any]:
    """What PyTorch's exporter writes for each of our operators."""

    def quantize_dequantize(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int) -> Any:
        q = _clipped(opset18.QuantizeLinear(x, scale, zero_point), zero_point.dtype, (qmin, qmax), types)
        return opset18.DequantizeLinear(q, scale, zero_point)

    def dequantize(integers: Any, scale: Any, zero_point: Any, axis: int, bits: int = 0, block: int = 0) -> Any:  # noqa: PLR0913
        if block:
            return opset21.DequantizeLinear(integers, scale, zero_point, axis=axis, block_size=block)
        return opset18.DequantizeLinear(integers, scale, zero_point, axis=axis)

    def global_average_pool(x: Any) -> Any:
        return opset18.GlobalAveragePool(x)

    return {
        QUANTIZE_DEQUANTIZE: quantize_dequantize,
        DEQUANTIZE: dequantize,
        GLOBAL_AVERAGE_POOL: global_average_pool,
    }


def _clipped(q: Any, stored: ir.DataType, bounds: tuple[int, int], types: Types) -> Any:
    if not types.for_activation(stored, *bounds)[1]:
        return q
    is_wide = stored.itemsize == 2
    kind = np.int32 if is_wide else stored.numpy()
    low, high = (opset18.Constant(value=from_array(np.array(bound, kind))) for bound in bounds)
    if not is_wide:
        return opset18.Clip(q, low, high)
    whole: Any = opset18.Cast(q, to=ir.DataType.INT32)
    clipped: Any = opset18.Clip(whole, low, high)
    return opset18.Cast(clipped, to=stored)


def integers_of(quantize: ir.Node) -> ir.Value:
    """The integers that a QuantizeLinear yields in the end, behind the clipping."""
    value = quantize.outputs[0]
    while following := [c.outputs[0] for c in value.consumers() if c.op_type in ("Clip", "Cast")]:
        value = following[0]
    return value


def refuse_types(lowered: GraphModule, types: Types) -> None:
    """Raise ExportError if the opset has no type for a tensor's integers, or no scales for blocks."""
    for node in lowered.graph.nodes:
        if node.target is QUANTIZE_DEQUANTIZE:
            bits = 8 * tensor_at(lowered, str(node.args[2].target)).element_size()
        elif node.target is DEQUANTIZE and node.args[2] is not None:
            bits = _weight_bits(lowered, node)[0]
        else:
            continue
        is_blocks = node.target is DEQUANTIZE and is_blockwise(node)
        if types.opset < _WIDE_FROM and (bits > 8 or is_blocks):
            what = "scales for blocks" if is_blocks else "16-bit integers"
            raise ExportError(
                f"opset {types.opset} has no {what}, which '{site(node)}' wants; pass opset={_WIDE_FROM} or newer"
            )


def narrow_types(model: ir.Model, lowered: GraphModule, types: Types) -> None:
    """Store integers in narrower types than torch has, where the opset has them: weights, and the zero points that tell
    an activation's type."""
    expected = [n for n in lowered.graph.nodes if n.target is QUANTIZE_DEQUANTIZE]
    made: _Made = {}
    for node, ours in zip([n for n in model.graph if n.op_type == "QuantizeLinear"], expected, strict=True):
        kind, _ = types.for_activation(_stored(node), *ours.args[3:5])
        if kind != _stored(node):
            for reader in (node, *node.outputs[0].consumers()):
                _retype(model, reader, (2,), kind, made)
            node.outputs[0].type = ir.TensorType(kind)
    narrow = dict(_narrow_weights(lowered, types))
    for node in model.graph:
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        zero = node.inputs[2] if stored is not None and len(node.inputs) > 2 else None
        if stored is not None and zero is not None and stored.name in narrow:
            _retype(model, node, (0, 2), narrow[stored.name], made)


def _narrow_weights(lowered: GraphModule, types: Types) -> Iterator[tuple[str, ir.DataType]]:
    """Each stored weight whose integers fit a narrower type, and that type."""
    for node in lowered.graph.nodes:
        if node.target is DEQUANTIZE and node.args[2] is not None and len(node.args) > 4:
            bits, signed = _weight_bits(lowered, node)
            width = types.for_weight(bits)
            if width < 8:
                yield str(node.args[0].target), TYPES[width, signed]


_Made = dict[tuple[str, ir.DataType], ir.Value]
"""What is stored as another type, by its name before and that type."""


def _retype(model: ir.Model, node: ir.Node, inputs: tuple[int, ...], kind: ir.DataType, made: _Made) -> None:
    """Give `node` its stored `inputs` as integers of another type, each stored once."""
    stored = model.graph.initializers
    for index in inputs:
        old = node.inputs[index]
        assert old is not None and old.name is not None
        if old.dtype == kind:
            continue
        new = made.get((old.name, kind)) or _stored_as(old, kind)
        made[old.name, kind] = new
        node.replace_input_with(index, new)
        if not old.uses():
            stored.pop(old.name, None)
        if new not in stored.values():
            # Under the same name, unless integers of another width still need that.
            new.name = old.name if old.name not in stored else f"{old.name}_{kind.name.lower()}"
            model.graph.register_initializer(new)


def _stored_as(old: ir.Value, kind: ir.DataType) -> ir.Value:
    assert old.const_value is not None
    integers = ir.Tensor(old.const_value.numpy().astype(kind.numpy()), dtype=kind)
    return ir.Value(name=old.name, shape=old.shape, type=ir.TensorType(kind), const_value=integers)


def _stored(quantize: ir.Node) -> ir.DataType:
    zero_point = quantize.inputs[2]
    assert zero_point is not None and zero_point.dtype is not None
    return zero_point.dtype


def _weight_bits(lowered: GraphModule, node: Node) -> tuple[int, bool]:
    """The width of a stored weight's integers, and whether they are signed."""
    integers: torch.Tensor = tensor_at(lowered, str(node.args[0].target))  # type: ignore[union-attr]
    bits: Any = node.args[4] if len(node.args) > 4 else 0
    return bits or 8 * integers.element_size(), integers.dtype.is_signed
