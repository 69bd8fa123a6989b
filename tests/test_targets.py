"""Targets: what each refuses before training, which grids it gives, and what it is said to compute in float."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import ConvBnRelu, Mlp, image, rows, seeded, trained
from models import Residual
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import SpecError
from fxcompress.quantizer import Quantizer
from fxcompress.rules import Quantize
from fxcompress.runtime import PRECISE, saturates, session
from fxcompress.spec import Spec
from fxcompress.targets import TARGETS, activation_grid, check_target, weight_grid

CPU = Path("/proc/cpuinfo")
WEIGHT = {"target": "weight", "bits": 8}
REFUSED = [
    ("onnxruntime", {"target": "weight", "bits": 8, "symmetric": False}, "affine weights, with a zero point"),
    ("onnxruntime", {"target": "weight", "bits": 8, "signed": False}, "unsigned weights"),
    ("openvino", {"target": "activation", "bits": 16}, "activations of 16 bits"),
    ("tensorrt", {"target": "activation", "bits": 4}, "activations of 4 bits"),
    ("tensorrt", {"target": "activation", "bits": 8, "symmetric": False}, "affine activations, with a zero point"),
    ("tensorrt", {"target": "activation", "bits": 8, "signed": False}, "unsigned activations"),
    ("tensorrt", {"target": "weight", "bits": 16}, "weights of 16 bits"),
    ("tensorrt", {"target": "weight", "bits": 8, "block": 16}, "weights in blocks of 8 bits"),
]


@pytest.mark.parametrize(("target", "rule", "what"), REFUSED)
def test_refuses_by_name_what_a_target_cannot_compute(target: str, rule: dict[str, Any], what: str) -> None:
    spec = Spec(rules=[Quantize(**rule)])
    with pytest.raises(SpecError, match=rf"rule 1 '.*' asks for {what}, which target '{target}' cannot compute; "):
        check_target(spec, target)
    check_target(spec, "generic")


def test_an_unknown_target_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="unknown target 'tflite'; known targets: onnxruntime, onnxruntime-avx2, "):
        fxc.compress(seeded(Mlp), "Q8(w)", rows(), total_steps=4, target="tflite")


def test_avx2_weights_leave_room_for_a_pair_of_products_in_16_bits() -> None:
    grid = weight_grid(Quantize(**WEIGHT), False, TARGETS["onnxruntime-avx2"])
    assert 2 * 255 * max(-grid.qmin, grid.qmax) < 2**15
    net = fxc.compress(seeded(Mlp), "Q8(w,f)", rows(), total_steps=4, target="onnxruntime-avx2")
    assert "uses 7 bits of wider weights" in net.schedule.timeline()


def test_tensorrt_has_signed_activations_without_zero_points(tmp_path: Any) -> None:
    grid = activation_grid(Quantize(target="activation", bits=8), False, TARGETS["tensorrt"])
    assert (grid.signed, grid.symmetric) == (True, True)
    net = fxc.compress(seeded(ConvBnRelu), "Q8(w,f)", image(), total_steps=4, target="tensorrt")
    fxc.calibrate(net, [image()])
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok
    model = onnx.load(tmp_path / "net.onnx")
    zeros = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert all(stored[name].dtype == "int8" and not stored[name].any() for name in zeros)
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    assert convs and all("kernel_shape" in {a.name for a in n.attribute} for n in convs)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"target": "weight", "bits": 4}, "stores weights of 4 bits and computes their products in float"),
        ({"target": "activation", "bits": 16}, "stores activations of 16 bits and computes with them in float"),
    ],
)
def test_what_runs_in_float_is_said_and_not_refused(rule: dict[str, Any], said: str) -> None:
    net = trained(seeded(Mlp), {"rules": [{"op": "quantize", **rule}]}, rows())
    assert said in " ".join(net.schedule.timeline().split())


def test_a_rule_that_says_the_sign_is_followed() -> None:
    rule = Quantize(target="activation", bits=8, signed=True, symmetric=True)
    assert activation_grid(rule, False, TARGETS["onnxruntime"]).signed
    assert not weight_grid(Quantize(**WEIGHT, signed=False), False, TARGETS["generic"]).signed


def test_blocks_are_refused_where_there_are_none() -> None:
    spec = {"rules": [{"op": "quantize", "target": "weight", "bits": 4, "block": 2, "first_last_bits": 4}]}
    with pytest.raises(
        SpecError, match=r"blocks of 2 inputs, and weight 'fc1.weight' \(Linear\) has the shape \(4, 3\)"
    ):
        fxc.compress(seeded(Mlp), spec, rows(), total_steps=4)
    with pytest.raises(SpecError, match=r"weight 'conv.weight' \(Conv2d\)"):
        fxc.compress(seeded(ConvBnRelu), spec, image(), total_steps=4)


def test_rules_that_contradict_themselves_are_refused() -> None:
    for fields, line in [
        ({"target": "activation", "block": 4}, "'block' is 4 for activations"),
        ({"target": "activation", "recalibrate": True}, "'recalibrate' is True for activations"),
        ({"grid": "binary", "bits": 8}, "'grid' is 'binary' with 8 bits; write bits: 2"),
        ({"grid": "ternary", "target": "activation"}, "'grid' is 'ternary' for activations"),
        ({"grid": "binary", "range": "mse"}, "whose scale has the least squared error"),
        ({"block": 4, "per_channel": True}, "'block' and 'per_channel' both say"),
        ({"recalibrate": True, "scale": "learned"}, "training changes itself"),
        ({"range": {"quantile": [0.9, 0.1]}}, "'range' is {'quantile': [0.9, 0.1]}; it must be 'min-max'"),
    ]:
        with pytest.raises(SpecError) as error:
            Quantize(**{"target": "weight", "bits": 2, **fields})
        assert line in str(error.value)


def test_a_recalibrated_weight_follows_training() -> None:
    rule = {"op": "quantize", "target": "weight", "bits": 8, "start": 0, "recalibrate": True}
    net = fxc.compress(seeded(Mlp), {"rules": [rule]}, rows(), total_steps=4)
    quantizer = net.compression.fc1.weight_quantizer
    with torch.no_grad():
        net.fc1.weight.mul_(3)
    before = quantizer.scale.clone()
    net.eval()(rows())
    assert torch.equal(quantizer.scale, before)
    net.train()(rows())
    torch.testing.assert_close(quantizer.scale, before * 3)


def test_tensorrt_quantizes_what_comes_along_a_shortcut_and_not_what_it_is_added_to(tmp_path: Any) -> None:
    net = fxc.compress(Block(), "Q8(w,f)", image(), total_steps=4, target="tensorrt")
    quantized = {name for name, m in net.compression.named_modules() if isinstance(m, Quantizer) and m.of_activation}
    assert quantized == {"x_quantizer", "relu_quantizer", "down_quantizer", "relu_1_quantizer"}
    [row] = [row for row in fxc.report(net).rows if row.name == "bn"]
    assert (row.rewritten, row.reason) == (False, "the target adds it inside of the product's kernel, before it rounds")
    fxc.calibrate(net, [image()])
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok
    onnxruntime = fxc.compress(Block(), "Q8(w,f)", image(), total_steps=4)
    assert "bn_quantizer" in dict(onnxruntime.compression.named_modules())


class Block(nn.Module):
    """Two convolutions and a shortcut with a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.down = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.down(x)
        return torch.relu(self.bn(self.conv2(torch.relu(self.conv1(x)))) + shortcut)


def test_the_report_says_what_runs_in_float() -> None:
    net = trained(seeded(Mlp), {"rules": [{"op": "quantize", "target": "weight", "bits": 4}]}, rows())
    assert "stores weights of 4 bits and computes their products in float" in "".join(fxc.report(net).summary())


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPU.exists(), reason="reads what Linux says of x86")
def test_kernels_saturate_where_the_processor_has_no_8_bit_dot_products() -> None:
    assert saturates() == ("vnni" not in CPU.read_text())


def test_a_precise_session_runs_a_file_exactly_on_any_processor(tmp_path: Path) -> None:
    net = trained(seeded(Residual), "Q8(w,f)", torch.rand(4, 3, 8, 8) * 4)
    fxc.export_onnx(net, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    stored = {i.name for i in model.graph.initializer}
    zero_points = [n.input[2] for n in model.graph.node if n.input[0] in stored and len(n.input) == 3]
    assert len(zero_points) > 2
    assert len(set(zero_points)) == len(zero_points)
    options = ort.SessionOptions()
    options.add_session_config_entry(PRECISE, "1")
    feed = {"x": torch.rand(4, 3, 8, 8).numpy() * 4}
    [precise] = ort.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"]).run(None, feed)
    [reference] = session(tmp_path / "net.onnx", optimized=False).run(None, feed)
    assert (precise == reference).mean() > 0.95  # but for rounding ties; where kernels saturate a quarter is equal
