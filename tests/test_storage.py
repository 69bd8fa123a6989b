"""Saving and loading compressed nets."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ConvBnRelu, Does, Fc, Mlp, Shared, image, rows, seeded, trained
from torch import nn

import fxcompress as fxc
from fxcompress.errors import ExportError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.fxc"


@pytest.mark.parametrize("spec", ["Q8(w,f)", "P0.5(w) -> Q4(w,f)"])
def test_a_loaded_net_computes_the_same(spec: str, path: Path) -> None:
    net = trained(seeded(ConvBnRelu), spec, image())
    fxc.save(net, path)
    again = fxc.load(path, ConvBnRelu().eval())
    assert torch.equal(again(image()), net(image()))
    assert again.schedule.timeline() == net.schedule.timeline()
    assert str(again.spec) == spec


def test_a_net_saved_amid_its_schedule_goes_on(path: Path) -> None:
    net = fxc.compress(seeded(Mlp), "P0.5(w,f) -> Q8(w,f)", rows(), total_steps=20)
    for _ in range(7):
        net(rows())
        net.schedule.step()
    fxc.save(net, path)
    again = fxc.load(path, Mlp())
    for twin in (net, again):
        torch.manual_seed(0)
        for _ in range(13):
            twin(rows() + 1)
            twin.schedule.step()
    assert [*again.state_dict()] == [*net.state_dict()]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


def test_nothing_is_pickled(path: Path) -> None:
    fxc.save(trained(seeded(Fc), "Q8(w,f)", rows()), path)
    assert not zipfile.is_zipfile(path)
    assert b"pickle" not in path.read_bytes() and b"torch" not in path.read_bytes()


def test_tied_weights_are_stored_once(path: Path) -> None:
    def twice(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.layer[1](m.layer[0](x))  # type: ignore[no-any-return]

    def tied() -> nn.Module:
        model = Does(twice, nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100)))
        model.layer[1].weight = model.layer[0].weight
        return model

    net = trained(tied(), "Q8(w,f)", rows(100))
    fxc.save(net, path)
    assert path.stat().st_size < 1.5 * 40_000
    assert torch.equal(fxc.load(path, tied().eval())(rows(100)), net(rows(100)))


def test_inputs_in_containers_come_back(path: Path) -> None:
    model = Does(lambda m, x: m.layer(x["a"][0]) + x["b"], nn.Linear(3, 3))  # type: ignore[index, call-overload]
    example = ({"a": [rows(), None], "b": 2.0},)
    net = fxc.compress(model, "Q8(w)", example, total_steps=4)
    fxc.save(net, path)
    again = fxc.load(path, model)
    assert torch.equal(again.schedule.example_inputs["x"]["a"][0], rows())
    assert again.schedule.example_inputs["x"]["b"] == 2.0


def test_refuses_a_file_that_is_none_of_its_own(path: Path) -> None:
    path.write_text("nothing")
    with pytest.raises(ExportError, match=r"cannot read '.*net.fxc'"):
        fxc.load(path, Fc())
    with pytest.raises(ExportError, match=r"cannot read '.*missing'"):
        fxc.load(path.parent / "missing", Fc())


def test_refuses_another_model(path: Path) -> None:
    fxc.save(trained(seeded(Fc), "Q8(w,f)", rows()), path)
    with pytest.raises(ExportError, match=r"was not saved from such a Shared: .*size mismatch.*fc.weight"):
        fxc.load(path, Shared())


def test_refuses_what_is_no_net_and_where_no_file_can_be(path: Path) -> None:
    with pytest.raises(ExportError, match="got Fc"):
        fxc.save(Fc(), path)  # type: ignore[arg-type]
    net = trained(seeded(Fc), "Q8(w,f)", rows())
    with pytest.raises(ExportError, match="has no folder"):
        fxc.save(net, path / "deeper")
