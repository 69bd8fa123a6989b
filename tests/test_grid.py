"""Contract 5: the grid is ONNX's; the gradient is straight through inside it and zero outside."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.grid import Grid, broadcast, fake_quantize, quantize
from fxcompress.qdq import quantize_dequantize

VALUES = st.lists(st.floats(-1024, 1024, width=32), min_size=1, max_size=40)
SCALES = st.floats(2.0**-18, 64.0, width=32)


def test_bounds() -> None:
    bounds = [
        (g.qmin, g.qmax)
        for g in (
            Grid(8, False, False),
            Grid(8, True, True, True),
            Grid(8, True, True),
            Grid(4, True, True, True),
            Grid(2, True, True, True),
        )
    ]
    assert bounds == [(0, 255), (-127, 127), (-128, 127), (-7, 7), (-1, 1)]


@given(VALUES, SCALES, st.integers(0, 255))
def test_agrees_with_onnx(values: list[float], scale: float, zero: int) -> None:
    x, s, z = np.array(values, np.float32), np.float32(scale), np.uint8(zero)
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "s", "y")]
    zero_info = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.UINT8, None)
    graph = onnx.helper.make_graph(nodes, "g", [*infos[:2], zero_info], [infos[2]])
    expected = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, {"x": x, "s": s, "z": z})[0]
    args = torch.tensor(x), torch.tensor(s), torch.tensor(zero, dtype=torch.int32)
    ours = fake_quantize(*args, Grid(8, False, False))
    assert np.array_equal(ours.numpy(), expected)
    stored = quantize_dequantize(args[0], args[1], torch.tensor(zero, dtype=torch.uint8), 0, 255)
    assert torch.equal(stored, ours)


@given(VALUES, SCALES, st.sampled_from([2, 3, 4, 5, 8]), st.integers(-3, 3))
def test_gradient_is_one_inside_and_zero_outside(values: list[float], scale: float, bits: int, zero: int) -> None:
    grid = Grid(bits, True, False)
    x = torch.tensor(values, requires_grad=True)
    s, z = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    fake_quantize(x, s, z, grid).sum().backward()
    integers = torch.round(x.detach() / s) + z
    assert torch.equal(x.grad, ((integers >= grid.qmin) & (integers <= grid.qmax)).float())


@given(SCALES)
def test_zero_is_exact(scale: float) -> None:
    for zero in (0, 7, 255):
        y = fake_quantize(torch.zeros(1), torch.tensor(scale), torch.tensor(zero), Grid(8, False, False))
        assert float(y) == 0


def test_halves_round_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize(x, torch.tensor(1.0), torch.tensor(0), Grid(8, True, True)).tolist() == [0, 2, 2, 0, -2]


def test_per_channel_scales_lie_along_their_axis() -> None:
    assert broadcast(torch.ones(3), 1, 4).shape == (1, 3, 1, 1)
    assert broadcast(torch.ones(()), None, 4).shape == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    y = fake_quantize(x, torch.full((4, 1), 0.1), torch.zeros(4, 1, dtype=torch.int32), Grid(8, True, True))
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
