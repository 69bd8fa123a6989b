"""The exporter's shortcuts: no decomposition where nothing is to be decomposed, no operator where a tensor is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress import exporter


class Net(nn.Module):
    """A convolution, an operator, and a product."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(F.relu(self.bn(self.conv(x)))).reshape(len(x), -1))


class Twice(nn.Module):
    """A table that is read by index, multiplied with, and handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(self.table(x), self.table.weight), self.table.weight


class Heads(nn.Module):
    """Two classifiers of the same features, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A program for each time that one is decomposed."""
    done: list[Any] = []
    original = exporter._run_decompositions

    def counted(program: Any, *args: Any, **how: Any) -> Any:
        done.append(program)
        return original(program, *args, **how)

    monkeypatch.setattr(exporter, "_run_decompositions", counted)
    return done


def exported(model: nn.Module, x: Tensor, spec: str, file: Path) -> tuple[fxc.Verification, onnx.ModelProto]:
    """The file of a net past its events."""
    net = fxc.compress(model, spec, x)
    for _ in range(3):
        net(x)
        net.schedule.step()
    return fxc.export_onnx(net.eval(), file), onnx.load(file)


def test_nothing_is_decomposed_that_needs_no_decomposition(tmp_path: Path, decompositions: list[Any]) -> None:
    """A quantized convolutional net has an ONNX operator for each of its own."""
    found, _ = exported(Net(nn.Identity()), torch.randn(4, 3, 8, 8), "Q8(w,f)@1", tmp_path / "net.onnx")
    assert found.ok and not decompositions


def test_a_float_batch_norm_is_decomposed(tmp_path: Path, decompositions: list[Any]) -> None:
    """It has no translation of its own."""
    found, _ = exported(Net(nn.Identity()), torch.randn(4, 3, 8, 8), "P0.5(w)@0..1", tmp_path / "net.onnx")
    assert found.ok and len(decompositions) == 1


@pytest.mark.parametrize(
    "between",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.contiguous() + x.new_ones(1, 1, 1, 1).expand_as(x),
        lambda x: x.swapaxes(2, 3).unflatten(1, (2, 4)).flatten(1, 2),
        lambda x: x.clone().mul_(2).clamp_(max=1.0),
        lambda x: x.movedim(1, -1).narrow(3, 0, 8).movedim(-1, 1),
    ],
)
def test_composite_and_in_place_operators_export(tmp_path: Path, between: Callable[[Tensor], Tensor]) -> None:
    """Whether the exporter translates them or not."""
    found, model = exported(Net(between), torch.randn(4, 3, 8, 8), "Q8(w,f)@1", tmp_path / "net.onnx")
    assert found.ok
    kinds = {tuple(i.dims): i.data_type for i in model.graph.initializer}
    assert kinds[8, 3, 3, 3] == onnx.TensorProto.INT8


def test_a_composite_operator_without_translation_makes_the_exporter_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`movedim` has none, and only decomposition makes a permutation of it."""
    original, tries = exporter._export, list[Any]()
    monkeypatch.setattr(exporter, "_export", lambda *args: (tries.append(args), original(*args))[1])
    net = Net(lambda x: x.movedim(1, -1).movedim(-1, 1))
    found, _ = exported(net, torch.randn(4, 3, 8, 8), "Q8(w,f)@1", tmp_path / "net.onnx")
    assert found.ok and len(tries) == 2


def test_a_refusal_is_told_once_and_as_it_was(tmp_path: Path) -> None:
    """Where the exporter has no translation even after decomposition."""
    with pytest.raises(fxc.errors.ExportError, match="refused the graph"):
        exported(Net(torch.special.bessel_j0), torch.randn(4, 3, 8, 8), "Q8(w)@1", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_stored_tensor_that_is_read_in_every_way_is_stored_once(tmp_path: Path) -> None:
    """Its integers are in the file, and no float copy of them."""
    found, model = exported(Twice(), torch.arange(7), "Q8(w)@1", tmp_path / "net.onnx")
    stored = [i for i in model.graph.initializer if list(i.dims) == [7, 4]]
    assert found.ok and [i.data_type for i in stored] == [onnx.TensorProto.INT8]
    assert not [i.name for i in model.graph.initializer if "fxcompress" in i.name]


def test_two_heads_that_are_equal_still_export(tmp_path: Path) -> None:
    """The exporter computes once what both compute; LeViT begins so."""
    net = Heads()
    net.b.load_state_dict(net.a.state_dict())
    found, _ = exported(net, torch.randn(4, 6), "Q8(w,f)@1", tmp_path / "net.onnx")
    assert found.ok


def test_weights_of_equal_integers_and_other_scales_export(tmp_path: Path) -> None:
    """They are one tensor to PyTorch's exporter; ONNX Runtime's precise mode wants them apart."""
    net = Heads()
    net.b.load_state_dict({k: 2 * v for k, v in net.a.state_dict().items()})
    found, model = exported(net, torch.randn(4, 6), "Q8(w,f)@1", tmp_path / "net.onnx")
    assert found.ok
    readers = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    stored = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2}
    assert len(stored) == sum(n.input[0] in stored for n in readers) == 2
    assert len({n.input[2] for n in readers if n.input[0] in stored}) == 2
