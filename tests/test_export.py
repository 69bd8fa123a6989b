"""Contracts 6 to 9: what is exported is what was trained, and ONNX Runtime agrees."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from models import Branches, Residual, train
from torch import nn

import fxcompress as fxc
from fxcompress import files
from fxcompress.errors import CaptureError, ExportError, ScheduleError, VerifyError
from fxcompress.grid import quantize
from fxcompress.masks import zeros_in
from fxcompress.pruner import Pruner
from fxcompress.runtime import mask_cost, session

SHAPE = (4, 3, 8, 8)


def trained(
    spec: Any,
    model: nn.Module | None = None,
    shape: tuple[int, ...] = SHAPE,
    steps: int = 10,
    target: str = "onnxruntime",
) -> fxc.CompressedModule:
    torch.manual_seed(0)
    net = fxc.compress(model or Residual(), spec, torch.randn(shape), total_steps=steps, target=target)
    train(net, steps, shape)
    return net


def stored(path: Path) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxc.CompressedModule, Path, Any]:
    net = trained("P0.5(w,f) -> Q8(w,f)")
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    return net, path, fxc.export_onnx(net, path, torch.randn(SHAPE))


def test_the_runtime_agrees_and_nothing_is_left_in_float(exported: Any) -> None:
    _, _, found = exported
    assert found.ok
    assert found.float_operators == ()
    assert found.integer_operators["QLinearConv"] == 4
    assert {"QLinearAdd", "QGemm", "QLinearMul", "QLinearConcat"} <= set(found.integer_operators)
    assert all(t.unexplained == (0, 0) for t in found.tensors)
    assert found.outputs[0].unit == "steps"
    assert max(found.outputs[0].largest) <= 1


def test_the_report_says_what_masks_cost(exported: Any) -> None:
    net, _, found = exported
    assert found.mask_bytes == sum(m.mask.numel() for m in net.modules() if isinstance(m, Pruner) and m.of_activation)
    assert 0 < found.mask_time_share < 1
    assert "does not skip them" in str(found)


def test_integers_are_the_trained_ones_and_masked_weights_are_zero(exported: Any) -> None:
    net, path, _ = exported
    file = stored(path)
    for name, norm in (("stem", net.bn), ("depthwise", net.bn2), ("point", net.bn3), ("side", None), ("fc", None)):
        weight = net.get_parameter(f"{name}.weight").detach()
        pruner, quantizer = (net.get_submodule(f"compression.{name}.weight_{k}") for k in ("pruner", "quantizer"))
        shape = (-1,) + (1,) * (weight.ndim - 1)
        integers = quantize(weight * pruner.mask, quantizer.scale.view(shape), torch.tensor(0), quantizer.grid)
        integers = integers if norm is None else integers * torch.sign(norm.weight.detach()).view(shape)
        saved = file[f"{name}.weight_integers" if norm is None else f"{name}.folded_integers"]
        assert saved.dtype == np.int8
        assert np.array_equal(saved, integers.numpy())
        assert not saved[~pruner.mask.numpy()].any()
        assert int((~pruner.mask).sum()) == zeros_in(0.5, weight.numel())


def test_scales_keep_their_bits_and_fold_exactly(exported: Any) -> None:
    net, path, _ = exported
    file = stored(path)
    quantizer = net.get_submodule("compression.fc.weight_quantizer")
    assert np.array_equal(file["fc.weight_scale"], quantizer.scale.numpy())
    activation = net.get_submodule("compression.x_quantizer")
    assert file["compression.x_quantizer_constants.scale"] == activation.scale.numpy()
    s, bn = net.get_submodule("compression.stem.weight_quantizer").scale.double(), net.bn
    exact = (s * bn.weight.detach().double().abs() / torch.sqrt(bn.running_var.double() + bn.eps)).float()
    assert np.array_equal(file["stem.folded_scale"], exact.numpy())


def test_the_file_takes_any_batch_and_carries_its_spec(exported: Any) -> None:
    net, path, _ = exported
    assert {p.key: p.value for p in onnx.load(path).metadata_props}["fxcompress.spec"] == str(net.spec)
    run = session(path)
    for batch in (1, 7):
        x = np.random.default_rng(0).standard_normal((batch, 3, 8, 8), np.float32)
        assert run.run(None, {"x": x})[0].shape == (batch, 5)


def test_frozen_differs_from_trained_by_folding_and_bias_rounding_only(exported: Any) -> None:
    net, _, _ = exported
    x = torch.randn(SHAPE)
    with torch.no_grad():
        gap = (fxc.freeze(net)(x) - net.eval()(x)).abs().max()
    assert float(gap) <= 2.01 * float(net.get_submodule("compression.fc_quantizer").scale)


@pytest.mark.parametrize(
    "spec", ["P0.5(w)", "P0.5(w,f)", "Q8(w)", "Q8(f)", "Q4(w,f)", "P0.3(f) -> Q6(w,f)", "Q3(w) -> P0.5(w)"]
)
def test_every_kind_of_spec_exports_and_agrees(spec: str, tmp_path: Path) -> None:
    found = fxc.export_onnx(trained(spec), tmp_path / "net.onnx")
    assert found.ok
    assert found.changed_constants == ()
    if "Q" not in spec or "f" not in spec.partition("Q")[2]:
        assert max(found.outputs[0].largest) < 100  # ulp


@pytest.mark.parametrize("options", [
    {"range": "mse"}, {"scale": "power-of-two"}, {"scale": "power-of-two", "range": "mse"}, {"symmetric": True}, {"per_channel": False},
])  # fmt: skip
def test_every_kind_of_grid_exports_and_agrees(options: dict[str, Any], tmp_path: Path) -> None:
    target = "weight" if "per_channel" in options else ["weight", "activation"]
    rules = [{"op": "quantize", "target": target, "bits": 8, **options}]
    if target == "weight":
        rules.append({"op": "quantize", "target": "activation", "bits": 8})
    found = fxc.export_onnx(trained({"rules": rules}), tmp_path / "net.onnx")
    assert found.ok
    assert found.float_operators == ()


@pytest.mark.parametrize("bits", [*range(2, 17)])
def test_every_width_is_stored_in_its_type_and_agrees(bits: int, tmp_path: Path) -> None:
    rule = {"op": "quantize", "target": ["weight", "activation"], "bits": bits, "first_last_bits": bits}
    found = fxc.export_onnx(trained({"rules": [rule]}), tmp_path / "net.onnx")
    assert found.ok
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    stored = {i.name: i for i in model.graph.initializer if i.name.endswith("integers") and "bias" not in i.name}
    kind = onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8 if bits <= 8 else onnx.TensorProto.INT16
    assert {i.data_type for i in stored.values()} == {kind}
    largest = max(abs(onnx.numpy_helper.to_array(i).astype(int)).max() for i in stored.values())
    assert largest == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("rule", [
    {"bits": 4, "block": 4, "match": {"type": "Linear"}}, {"bits": 2, "grid": "binary"}, {"bits": 2, "grid": "ternary"},
    {"bits": 8, "symmetric": False}, {"bits": 8, "signed": False}, {"bits": 4, "signed": False, "symmetric": False},
    {"bits": 12, "symmetric": False},
], ids=str)  # fmt: skip
def test_every_kind_of_weight_exports_and_agrees(rule: dict[str, Any], tmp_path: Path) -> None:
    weights = {"op": "quantize", "target": "weight", "first_last_bits": rule["bits"], "start": 1, **rule}
    spec = {"rules": [weights, {"op": "quantize", "target": "activation", "bits": 8, "start": 2}]}
    found = fxc.export_onnx(trained(spec, target="generic"), tmp_path / "net.onnx")
    assert found.ok


@pytest.mark.parametrize("bits", [9, 16])
def test_an_opset_without_the_type_is_refused(bits: int, tmp_path: Path) -> None:
    rule = {"op": "quantize", "target": "activation", "bits": bits, "first_last_bits": bits}
    with pytest.raises(ExportError, match="opset 18 has no 16-bit integers, which 'x' wants; pass opset=21"):
        fxc.export_onnx(trained({"rules": [rule]}), tmp_path / "net.onnx", opset=18)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_runtime_cannot_load_is_not_written(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ExportError, match=f"was not written, since ONNX Runtime cannot load it at opset {newest}"):
        fxc.export_onnx(trained("Q8(w,f)"), tmp_path / "net.onnx", opset=newest)
    assert list(tmp_path.iterdir()) == []


def test_what_one_file_cannot_hold_goes_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_FILE", 500)
    net = trained("Q8(w,f)", Residual(32))
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert found.ok and found.tensors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    external = [
        i for i in onnx.load(tmp_path / "net.onnx", load_external_data=False).graph.initializer if i.external_data
    ]
    assert external
    x = torch.randn(SHAPE)
    assert session(tmp_path / "net.onnx").run(None, {"x": x.numpy()})[0].shape == (4, 5)


def test_a_model_with_a_training_branch_exports_what_evaluation_runs(tmp_path: Path) -> None:
    net = trained("Q8(w,f)", Branches(), (4, 6))
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert found.ok
    assert len(found.outputs) == 1


@pytest.mark.parametrize("opset", [18, 19, 21, 23])
def test_the_opset_is_the_one_asked_for(opset: int, tmp_path: Path) -> None:
    fxc.export_onnx(trained("Q8(w,f)"), tmp_path / "net.onnx", opset=opset)
    assert [o.version for o in onnx.load(tmp_path / "net.onnx").opset_import if not o.domain] == [opset]


@pytest.mark.parametrize("opset", [13, 17, 99])
def test_an_opset_that_cannot_be_written_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} cannot be written"):
        fxc.export_onnx(trained("Q8(w)"), tmp_path / "net.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_schedule_is_refused(tmp_path: Path) -> None:
    net = fxc.compress(Residual(), "Q8(w,f)", torch.randn(SHAPE), total_steps=10)
    with pytest.raises(ExportError, match=r"events that have not acted yet, the next after step 4 .*pass optimizer="):
        fxc.export_onnx(net, tmp_path / "net.onnx")


@pytest.mark.parametrize("path", ["nowhere/net.onnx", "."])
def test_a_path_that_cannot_be_written_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot write"):
        fxc.export_onnx(trained("Q8(w)"), tmp_path / path)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="do not fit"):
        fxc.export_onnx(trained("Q8(w)"), tmp_path / "net.onnx", {"z": torch.randn(SHAPE)})


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fxcompress.export.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        fxc.export_onnx(trained("Q8(w)"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"old"


def test_a_file_of_another_net_is_refused(exported: Any, tmp_path: Path) -> None:
    net = trained("Q8(w,f)", Branches(), (4, 6))
    with pytest.raises(VerifyError, match="was not exported from this net"):
        fxc.verify(net, exported[1])
    with pytest.raises(VerifyError, match="no file"):
        fxc.verify(net, tmp_path / "gone.onnx")


def test_a_changed_weight_is_noticed(exported: Any, tmp_path: Path) -> None:
    net, path, _ = exported
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == "side.weight_integers":
            values = onnx.numpy_helper.to_array(initializer).copy()
            values[0] = 100 - values[0]
            initializer.CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
    onnx.save(model, tmp_path / "changed.onnx")
    found = fxc.verify(net, tmp_path / "changed.onnx")
    assert not found.ok
    assert next(t.name for t in found.tensors if t.unexplained[0]).startswith("relu_")


def degenerate(model: Residual) -> Residual:
    with torch.no_grad():
        model.bn.weight[:] = torch.tensor([0.0, -1.0, 1e-12, 1.0, -0.0, 2.0, -3.0, 1e-30])
        model.bn.running_var[:4] = 0
        model.stem.weight[3] = 0
        model.side.weight.mul_(1e-7)
        model.side.bias[:4] = 20.0
        model.fc.weight[0] = 0
    return model


def test_degenerate_nets_train_without_nan_and_export_what_they_compute(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = fxc.compress(degenerate(Residual()), "P0.5(w,f) -> Q8(w,f)", torch.randn(SHAPE), total_steps=10)
    train(net, 10, SHAPE, lr=1e-4)
    assert all(bool(b.isfinite().all()) for n, b in net.named_buffers() if n.endswith("scale"))
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    found = fxc.export_onnx(net, tmp_path / "net.onnx", torch.randn(SHAPE))
    assert found.ok, str(found)
    frozen = fxc.freeze(net)
    assert all(bool((b > 0).all()) for n, b in frozen.named_buffers() if n.endswith("_scale"))


def test_a_bias_beyond_int32_is_noted(tmp_path: Path) -> None:
    model = Residual()
    with torch.no_grad():
        model.side.weight.mul_(1e-9)
        model.side.bias.fill_(100.0)
    net = fxc.compress(model, "Q8(w,f)@1", torch.randn(SHAPE), total_steps=2)
    net(torch.randn(SHAPE))
    net.schedule.step()
    net.schedule.step()
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert any("'side': the bias of 8 channels leaves int32" in note for note in found.notes)
    assert found.ok


def test_a_bias_on_steps_larger_than_the_output_s_is_noted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), depthwise, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    net = fxc.compress(model, "Q8(w,f)@1", torch.randn(SHAPE), total_steps=2)
    for _ in range(2):
        net(torch.randn(SHAPE))
        net.schedule.step()
    quiet = fxc.export_onnx(net, tmp_path / "quiet.onnx")
    assert not any("steps of the output" in note for note in quiet.notes)
    with torch.no_grad():
        net.get_submodule("2").running_var[1] = 0.0  # as behind a channel that is dead
        net.get_submodule("2").weight[1] = 8.0
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert any("'1': the bias of 1 channels is rounded by up to" in note for note in found.notes)
    assert found.ok


def test_a_raised_bias_leaves_room_for_the_sums(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        model[0].weight.mul_(1e-5)
        model[0].bias.fill_(1.0)
    net = fxc.compress(model, "Q8(w,f)@1", torch.randn(SHAPE), total_steps=2)
    net(torch.randn(SHAPE))
    net.schedule.step()
    net.schedule.step()
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok


class Twice(nn.Module):
    """One subexpression written twice, and one convolution called twice on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b = nn.Linear(256, 3), nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, z = torch.relu(self.conv(x)), torch.relu(self.conv(x))
        return self.a(y.flatten(1)) + self.b(y.flatten(1)) + self.a(z.flatten(1))


def test_equal_subexpressions_export(tmp_path: Path) -> None:
    found = fxc.export_onnx(trained("P0.5(w,f) -> Q8(w,f)", Twice()), tmp_path / "net.onnx")
    assert found.ok
    assert found.float_operators == ()


class OneWeight(nn.Module):
    """One weight whose channels two products count along different axes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3) * 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose2d(torch.relu(nn.functional.conv2d(x, self.weight)), self.weight)


def test_one_weight_with_two_channel_axes_has_one_scale(tmp_path: Path) -> None:
    net = trained("P0.5(w) -> Q8(w,f)", OneWeight())
    assert net.compression.weight_quantizer.axis is None
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok


def test_a_tensor_of_zeros_keeps_the_bias_behind_it_fine(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].bias[:] = torch.tensor([0.001, 0.002, -0.003, 0.0015])
    net = fxc.compress(model, "Q8(w,f)@1", torch.randn(4, 6), total_steps=2)
    net(torch.randn(4, 6))
    net.schedule.step()
    net.schedule.step()
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert found.ok
    assert found.outputs[0].trained <= 1


@pytest.mark.parametrize("spec", ["P0.5(w)", "Q8(w)"])
def test_a_file_of_other_weights_is_noticed_without_quantized_tensors(spec: str, tmp_path: Path) -> None:
    net, other = trained(spec), trained(spec)
    with torch.no_grad():
        other.fc.weight.add_(0.3)
    assert fxc.export_onnx(other, tmp_path / "net.onnx").ok
    assert not fxc.verify(net, tmp_path / "net.onnx").ok


def test_a_folder_that_takes_no_file_is_refused() -> None:
    with pytest.raises(ExportError, match="cannot write"):
        fxc.export_onnx(trained("Q8(w)"), "/proc/net.onnx")


def test_an_optimizer_that_is_none_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"optimizer is 'adam'; pass a torch\.optim\.Optimizer"):
        fxc.compress(Residual(), "Q8(w)", torch.randn(SHAPE), total_steps=10, optimizer="adam")  # type: ignore[arg-type]


def test_a_softmax_between_convolutions_agrees(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    found = fxc.export_onnx(trained("Q8(w,f)", model), tmp_path / "net.onnx")
    assert found.ok
    assert found.integer_operators["QLinearSoftmax"] == 1


class Gated(nn.Module):
    """Multiplies two activations, as squeeze-and-excitation does, beside what masks multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)) * torch.relu(self.gate(x)))


def test_the_time_of_masks_is_of_masks_alone(tmp_path: Path) -> None:
    found = fxc.export_onnx(trained("P0.5(f) -> Q8(w,f)", Gated()), tmp_path / "net.onnx")
    assert found.integer_operators["QLinearMul"] == 3
    assert 0 < found.mask_time_share < 1
    model = onnx.load(tmp_path / "net.onnx")
    shared = mask_cost(tmp_path / "net.onnx", model, {"x": np.zeros(SHAPE, np.float32)})[1]
    for node in model.graph.node:  # with no mask's multiplication to be found by name, no time is theirs
        node.name = f"{node.name}_renamed"
    assert mask_cost(tmp_path / "net.onnx", model, {"x": np.zeros(SHAPE, np.float32)})[1] == 0 < shared


class SoftmaxCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([torch.softmax(self.a(x), 1), 5 * self.b(x)], 1))


def test_a_fixed_scale_is_not_shared(tmp_path: Path) -> None:
    net = trained("Q8(w,f)", SoftmaxCat())
    fixed = [n for n, m in net.named_modules() if getattr(m, "fixed_scale", None) is not None]
    assert [sum(str(n.target) == path for n in net.graph.nodes) for path in fixed] == [1]
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    assert found.ok
    assert found.float_operators == ()
    assert found.integer_operators["QLinearConcat"] == 1


def test_repeated_float_functions_export(tmp_path: Path) -> None:
    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(nn.functional.gelu(y)) + self.b(nn.functional.gelu(y))

    net = fxc.compress(Repeats(), "Q8(w,f)@1", torch.randn(4, 6), total_steps=2)
    for _ in range(2):
        net(torch.randn(4, 6))
        net.schedule.step()
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok


def test_a_large_bias_of_16_bit_products_is_not_saturated(tmp_path: Path) -> None:
    torch.manual_seed(0)  # other weights may train to NaN here
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([5.0, -5.0, 0.5, 0.0]))
    rule = {"op": "quantize", "target": ["weight", "activation"], "bits": 16, "first_last_bits": 16}
    found = fxc.export_onnx(trained({"rules": [rule]}, model), tmp_path / "net.onnx")
    assert found.ok
    assert max(found.outputs[0].largest) <= 64  # of 65536 steps


class InPlace(nn.Module):
    """One activation that writes in place, called where its input is seen afterwards and where it is not."""

    def __init__(self, is_seen: bool) -> None:
        super().__init__()
        self.is_seen = is_seen
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z = self.b(self.act(y))
        return y * 2 + z if self.is_seen else self.act(z) * 2


@pytest.mark.parametrize("is_seen", [False, True])
def test_what_writes_in_place_exports_as_trained(is_seen: bool, tmp_path: Path) -> None:
    net = trained("P0.5(w) -> Q8(w)", InPlace(is_seen))
    x = torch.randn(SHAPE)
    assert fxc.export_onnx(net, tmp_path / "net.onnx", x).ok
    assert net.eval().act.inplace
    run = session(tmp_path / "net.onnx", optimized=False).run(None, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(run[0], net(x.clone()).numpy(), rtol=1e-4, atol=1e-5)


class Levels(nn.Module):
    """Several outputs in an ordered dictionary, as a feature pyramid has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.first(x)
        return OrderedDict([("fine", y), ("coarse", self.second(torch.relu(y)))])


def test_outputs_in_a_container_that_the_graph_makes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = fxc.compress(Levels(), "Q8(w,f)@1", torch.randn(SHAPE), total_steps=4)
    for _ in range(4):
        net(torch.randn(SHAPE))
        net.schedule.step()
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx", torch.randn(SHAPE))
    assert found.ok
    assert [(output.name, output.unit) for output in found.outputs] == [("output_0", "steps"), ("output_1", "steps")]


class Attends(nn.Module):
    """Three layers of tokens that read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        scores = self.queries(x) @ self.keys(x).transpose(1, 2)
        return scores.softmax(-1) @ self.values(x)


def test_layers_of_tokens_share_their_flat_input(tmp_path: Path) -> None:
    net = trained("Q8(w,f)", Attends(), (2, 5, 6))
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx", torch.randn(2, 5, 6))
    assert found.ok
    model = onnx.load(tmp_path / "net.onnx")
    flattened = [n.input[0] for n in model.graph.node if n.op_type in ("Flatten", "Reshape")]
    assert len(set(flattened)) == len(flattened)
