"""Every cause of a difference, provoked in a file that ONNX Runtime then runs, is named; a sound file has none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from models import Residual, train
from onnx import numpy_helper
from torch import nn

import fxcompress as fxc
from fxcompress import runs
from fxcompress.causes import compare_tensors, reference_of
from fxcompress.comparison import (
    CAUSES,
    FUSION,
    OFF,
    ON,
    OPENVINO,
    OVERFLOW,
    SATURATION,
    TIE,
    UNEXPLAINED,
    UPSTREAM,
    TensorComparison,
    TensorInRuntime,
    Verification,
)
from fxcompress.errors import VerifyError
from fxcompress.frozen import lower
from fxcompress.names import quantized_names
from fxcompress.passes import IntegerProducts
from fxcompress.pipeline import run
from fxcompress.runs import Run

SHAPE = (4, 3, 8, 8)


def trained(spec: Any, model: nn.Module | None = None, shape: tuple[int, ...] = SHAPE) -> fxc.CompressedModule:
    torch.manual_seed(0)
    net = fxc.compress(model or Residual(), spec, torch.randn(shape), total_steps=10)
    train(net, 10, shape)
    return net


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxc.CompressedModule, Path, Verification]:
    """A net whose scales are powers of two, so that every runtime computes it without rounding sums."""
    rule = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "scale": "power-of-two"}
    net = trained({"rules": [rule]})
    path = tmp_path_factory.mktemp("verify") / "net.onnx"
    return net, path, fxc.export_onnx(net, path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxc.CompressedModule, Path]:
    net = trained("Q8(w,f)")
    path = tmp_path_factory.mktemp("verify") / "net.onnx"
    fxc.export_onnx(net, path)
    return net, path


def edited(path: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, folder / "edited.onnx")
    return folder / "edited.onnx"


def constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[onnx.ModelProto], None]:
    """An edit that stores another value under the name of an initializer."""

    def edit(model: onnx.ModelProto) -> None:
        [stored] = [i for i in model.graph.initializer if i.name == name]
        value = numpy_helper.to_array(stored)
        stored.CopyFrom(numpy_helper.from_array(np.asarray(change(value.copy()), value.dtype), name))

    return edit


def tensor(found: Verification, name: str) -> TensorComparison:
    [one] = [t for t in found.tensors if t.name == name]
    return one


def of(one: TensorComparison, runtime: str) -> TensorInRuntime:
    [found] = [r for r in one.runtimes if r.runtime == runtime]
    return found


def every(found: Verification) -> list[TensorInRuntime]:
    return [one for t in found.tensors for one in t.runtimes]


def test_nothing_differs_where_nothing_can(exact: Any) -> None:
    _, _, found = exact
    assert found.ok
    assert found.first_difference is None and found.first_fault is None
    assert found.runtimes[:2] == (OFF, ON)
    assert all(one.causes == {} and set(one.steps) == set(one.end_to_end) == {0} for one in every(found))
    assert found.changed_constants == ()
    assert str(found).startswith("ok: ") and "first difference: none" in str(found)


def test_counts_add_up(plain: Any, tmp_path: Path) -> None:
    net, path = plain
    file = edited(path, tmp_path, constant("compression.relu_quantizer_constants.scale", lambda s: s * 1.02))
    found = fxc.verify(net, file, torch.randn(64, *SHAPE[1:]))
    for one in every(found):
        assert sum(one.steps.values()) == sum(one.end_to_end.values()) == one.elements
        assert sum(n for cause, n in one.causes.items() if cause != UPSTREAM) == one.differing
        assert one.causes.get(UPSTREAM, 0) <= one.differing_end_to_end
        assert set(one.causes) <= set(CAUSES) and 0 not in one.causes.values()
    assert sum(one.differing for one in every(found)) > 0


def test_a_value_at_the_middle_of_two_steps_is_a_rounding_tie(exact: Any, tmp_path: Path) -> None:
    net, path, _ = exact
    scale = net.get_submodule("compression.x_quantizer").scale
    x = (torch.arange(0, 192).repeat(4).view(SHAPE) % 32 + 0.5) * scale  # halves go to the even integer, up or down
    raised = edited(
        path, tmp_path, constant("compression.x_quantizer_constants.scale", lambda s: np.nextafter(s, np.float32(9)))
    )
    found = fxc.verify(net, raised, x)
    for runtime in (OFF, ON):
        one = of(tensor(found, "x.quantized"), runtime)
        assert one.steps == {-1: x.numel() // 2, 0: x.numel() // 2}
        assert one.causes == {TIE: x.numel() // 2}
    first = found.first_difference
    assert first is not None and (first.module, first.tensor, first.cause) == ("x", "x.quantized", TIE)


@pytest.mark.parametrize(("offset", "cause"), [(2.0**-9, TIE), (2.0**-6, UNEXPLAINED)])
def test_a_value_is_a_tie_only_near_the_middle(offset: float, cause: str, exact: Any, tmp_path: Path) -> None:
    net, path, _ = exact
    scale = net.get_submodule("compression.x_quantizer").scale
    x = (torch.arange(0, 192).repeat(4).view(SHAPE) % 16 + 16.5 + offset) * scale
    raised = constant("compression.x_quantizer_constants.scale", lambda s: s * np.float32(1 + offset / 8))
    found = fxc.verify(net, edited(path, tmp_path, raised), x)
    for runtime in (OFF, ON):
        one = of(tensor(found, "x.quantized"), runtime)
        assert one.steps == {-1: x.numel()} and one.causes == {cause: x.numel()}
    assert (found.first_fault is None or found.first_fault.tensor != "x.quantized") is (cause == TIE)


def test_a_step_that_the_plain_runtime_is_off_as_well_is_no_fusion(plain: Any, tmp_path: Path) -> None:
    net, path = plain
    found = fxc.verify(net, edited(path, tmp_path, constant("side.bias_scale", lambda s: s * 1.04)))
    for runtime in (OFF, ON):
        one = of(tensor(found, "relu_2.quantized"), runtime)
        assert one.largest == 1 and one.gravest == UNEXPLAINED and FUSION not in one.causes
    assert found.changed_constants == ("side.bias_scale",) and not found.ok


def test_another_weight_in_the_file_is_unexplained_and_what_follows_is_upstream(exact: Any, tmp_path: Path) -> None:
    net, path, _ = exact
    found = fxc.verify(net, edited(path, tmp_path, constant("side.weight_integers", lambda w: -w)))
    assert not found.ok
    assert found.changed_constants == ("side.weight_integers",)
    first = found.first_difference
    assert first is not None and first == found.first_fault
    assert (first.module, first.tensor, first.runtime, first.cause) == ("side", "relu_2.quantized", OFF, UNEXPLAINED)
    for t in found.tensors:
        for one in t.runtimes:
            if t.name != "relu_2.quantized":
                assert one.differing == 0
                assert one.causes.get(UPSTREAM, 0) == one.differing_end_to_end
    assert [t.name for t in found.tensors if of(t, OFF).differing_end_to_end][-1] == "fc.quantized"
    assert of(tensor(found, "relu.quantized"), OFF).differing_end_to_end == 0
    assert "stores otherwise than the net: side.weight_integers" in str(found)


def test_another_scale_in_the_file_is_named(exact: Any, tmp_path: Path) -> None:
    net, path, _ = exact
    found = fxc.verify(net, edited(path, tmp_path, constant("stem.folded_scale", lambda s: s * 1.1)))
    first = found.first_difference
    assert not found.ok and found.changed_constants == ("stem.folded_scale",)
    assert first is not None and (first.module, first.cause) == ("relu", UNEXPLAINED)


def test_sums_that_leave_int32_are_a_bias_overflow(exact: Any, tmp_path: Path) -> None:
    net, path, _ = exact
    largest = 2**31 - 1
    found = fxc.verify(net, edited(path, tmp_path, constant("side.bias_integers", lambda b: np.full_like(b, largest))))
    off, on = (of(tensor(found, "relu_2.quantized"), runtime) for runtime in (OFF, ON))
    assert OVERFLOW not in off.causes  # computed in float
    assert on.causes[OVERFLOW] > 0
    assert not found.ok


def test_a_net_whose_own_bias_leaves_no_room_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxcompress.passes.quantize_bias.room_for_bias", lambda gm, product: float(2**31 - 1))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.abs() * 3e-6)
        model[0].bias.fill_(1.0)
    net = fxc.compress(model, "Q8(w,f)@1", torch.rand(SHAPE), total_steps=2)
    net(torch.rand(SHAPE))
    net.schedule.step()
    net.schedule.step()
    found = fxc.export_onnx(net, tmp_path / "net.onnx", torch.rand(SHAPE) + 0.5)
    assert not found.ok
    assert found.changed_constants == ()
    fault = found.first_fault
    assert fault is not None and (fault.module, fault.runtime, fault.cause) == ("1", ON, OVERFLOW)
    assert of(tensor(found, fault.tensor), ON).causes.keys() <= {OVERFLOW, TIE}


@pytest.mark.parametrize("saturates", [True, False])
def test_a_runtime_that_does_not_clip_is_a_saturation(
    saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("fxcompress.verify"), "saturates", lambda: saturates)
    net = trained("Q4(w,f)")
    net.get_submodule("compression.bn3_quantizer").scale.mul_(0.1)  # so that values lie beyond its grid
    path = tmp_path / "net.onnx"
    assert fxc.export_onnx(net, path).ok

    def drop_clip(model: onnx.ModelProto) -> None:
        [clip] = [n for n in model.graph.node if n.output[0] == "bn3.quantized"]
        [quantize] = [n for n in model.graph.node if n.output[0] == clip.input[0]]
        quantize.output[0] = clip.output[0]
        model.graph.node.remove(clip)

    found = fxc.verify(net, edited(path, tmp_path, drop_clip))
    first = found.first_fault
    assert first is not None and (first.tensor, first.cause) == ("bn3.quantized", SATURATION)
    for runtime in (OFF, ON):
        one = of(tensor(found, "bn3.quantized"), runtime)
        assert one.causes[SATURATION] > 0 and UNEXPLAINED not in one.causes
        assert max(one.steps) == one.largest > 1
    assert not found.ok
    assert any("onnxruntime-avx2" in note for note in found.notes) == saturates


@pytest.mark.parametrize(("steps", "cause", "ok"), [(0.4, FUSION, True), (2.4, UNEXPLAINED, False)])
def test_what_only_the_optimizer_computes_otherwise_is_fusion_up_to_a_step(
    steps: float, cause: str, ok: bool, plain: Any, tmp_path: Path
) -> None:
    net, path = plain

    def rescale_bias(model: onnx.ModelProto) -> None:
        # The same bias on another grid: node by node it counts as it is, the fused kernel takes it for s_x s_w.
        stored = {i.name: i for i in model.graph.initializer}
        bias, scale, step = (
            numpy_helper.to_array(stored[name])
            for name in ("fc.bias_integers", "fc.bias_scale", "compression.fc_quantizer_constants.scale")
        )
        [dequantize] = [n for n in model.graph.node if "fc.bias_integers" in n.input]
        moved = bias + np.round(steps * step / scale).astype(np.int32)
        grid = (bias.astype(np.float64) * scale / moved).astype(np.float32)
        model.graph.initializer.remove(stored["fc.bias_integers"])
        model.graph.initializer.extend([numpy_helper.from_array(moved, "moved"), numpy_helper.from_array(grid, "grid")])
        dequantize.input[:2] = ["moved", "grid"]

    found = fxc.verify(net, edited(path, tmp_path, rescale_bias), torch.randn(64, *SHAPE[1:]))
    off, on = (of(tensor(found, "fc.quantized"), runtime) for runtime in (OFF, ON))
    assert set(off.causes) <= {TIE, UPSTREAM}
    assert on.gravest == cause and on.causes[cause] > on.elements / 10
    assert found.ok is ok


class Wide(nn.Module):
    """A linear layer and a convolution whose neighbouring products reach beyond 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(64, 5)
        with torch.no_grad():
            self.conv.weight.abs_()
            self.fc.weight.abs_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(torch.relu(self.conv(x)).flatten(1))
        return y


def saturated(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rows of uint8 times rows of int8, pairs saturating in 16 bits, one at a time."""
    sums = np.zeros((len(x), len(weight)), np.int64)
    for i, row in enumerate(x.astype(np.int64)):
        for j, kernel in enumerate(weight.astype(np.int64)):
            products = row * kernel
            pairs = [products[k : k + 2].sum() for k in range(0, len(products), 2)]
            sums[i, j] = sum(min(max(pair, -(2**15)), 2**15 - 1) for pair in pairs)
    return sums


def test_pairs_of_products_that_saturate_in_16_bits_are_a_saturation() -> None:
    x = torch.rand(SHAPE) * 4
    net = fxc.compress(Wide(), "Q8(w,f)@1", x, total_steps=2)
    net(x)
    net.schedule.step()
    net.schedule.step()
    graph = lower(net)
    names = quantized_names(graph)
    run(graph, [IntegerProducts()])
    reference = reference_of(graph, onnx.ModelProto(), {"x": x})
    theirs = {node: integers.numpy() for node, integers in reference.end_to_end.items()}
    by_name = {name: node for node, name in names.items()}
    value = dict(graph.named_buffers())
    inputs = theirs[by_name["flatten.quantized"]]
    weight = value["fc.weight_integers"].numpy()
    zero = int(by_name["flatten.quantized"].args[2] is not None) * int(
        value[str(by_name["flatten.quantized"].args[2].target)]
    )  # type: ignore[union-attr]
    sums = saturated(inputs, weight) - zero * weight.astype(np.int64).sum(1) + value["fc.bias_integers"].numpy()
    fc = by_name["fc.quantized"]
    in_scale, out_scale, out_zero = (
        value[str(n.target)].numpy()  # type: ignore[union-attr]
        for n in (by_name["flatten.quantized"].args[1], fc.args[1], fc.args[2])
    )
    real = sums.astype(np.float32) * (in_scale * value["fc.weight_scale"].numpy())
    theirs[fc] = np.clip(np.rint(real / out_scale) + out_zero, 0, 255).astype(np.int32)
    found = compare_tensors(reference, OFF, theirs, {})[fc]
    assert found.differing > 0 and found.gravest == SATURATION
    assert set(found.causes) <= {SATURATION, TIE} and found.is_fault


def test_a_file_that_is_no_model_is_refused(plain: Any, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(VerifyError, match=r"text.onnx' is no ONNX file"):
        fxc.verify(plain[0], tmp_path / "text.onnx")


def test_without_openvino_a_line_says_so(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    found = fxc.verify(exact[0], exact[1])
    assert found.runtimes == (OFF, ON)
    assert str(found).endswith("OpenVINO is not installed: not compared with it")


def installed(monkeypatch: pytest.MonkeyPatch, openvino: Callable[..., Run]) -> None:
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(runs, "_openvino", openvino)


def test_openvino_that_cannot_run_the_file_is_a_line(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> Run:
        raise RuntimeError("Check failed\nno such operator")

    installed(monkeypatch, fails)
    found = fxc.verify(exact[0], exact[1])
    assert found.ok and found.runtimes == (OFF, ON)
    assert "OpenVINO cannot run the file: no such operator" in found.notes


def test_openvino_is_reported_but_does_not_decide(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, lambda *args: Run(OPENVINO, [np.zeros((4, 5), np.float32)], None))
    found = fxc.verify(exact[0], exact[1])
    assert found.ok and found.runtimes == (OFF, ON, OPENVINO)
    assert found.outputs[0].runtimes[2].largest > 1 and len(found.outputs[0].largest) == 2
    assert all(len(t.runtimes) == 2 for t in found.tensors)
    assert any("only outputs are compared" in note for note in found.notes)


def test_openvino_agrees_where_it_is_installed(exact: Any) -> None:
    pytest.importorskip("openvino")
    found = fxc.verify(exact[0], exact[1])
    assert found.runtimes == (OFF, ON, OPENVINO)
    assert all(of(t, OPENVINO).largest <= 1 for t in found.tensors)
    assert found.outputs[0].runtimes[2].largest <= 1
