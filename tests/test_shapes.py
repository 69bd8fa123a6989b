"""Shapes found by a dry run that touches nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import ConvBnRelu, Fc, Mlp, captured, image, rows, seeded
from torch import Tensor, nn

from fxcompress.capture import bind, capture
from fxcompress.errors import CaptureError
from fxcompress.module import CompressedModule
from fxcompress.operators import is_activation, macs, shape_of
from fxcompress.shapes import propagate_shapes


def test_every_tensor_has_its_shape_and_dtype() -> None:
    net = captured(seeded(ConvBnRelu), image())
    shapes = {n.name: shape_of(n) for n in net.graph.nodes if n.op != "output"}
    unit = (2, 4, 2, 2)
    assert shapes == {"x": (2, 3, 4, 4), "conv_weight": (4, 3, 3, 3), "conv": unit, "bn": unit, "relu": unit}
    assert [n.name for n in net.graph.nodes if is_activation(n)] == ["x", "conv", "bn", "relu"]


def test_macs_follow_from_the_shapes() -> None:
    conv = next(n for n in captured(seeded(ConvBnRelu), image()).graph.nodes if n.name == "conv")
    assert macs(conv) == 2 * 4 * 2 * 2 * 3 * 3 * 3


def test_modes_buffers_and_random_state_stay() -> None:
    model = nn.Sequential(seeded(ConvBnRelu), nn.Dropout())
    model[0].bn.eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    net = captured(model, image())
    assert [m.training for m in net.get_submodule("0").children() if not list(m.children())] == [True, False, True]
    assert net.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_no_tensor_has_no_shape() -> None:
    class Reshapes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.size(0), -1)

    net = captured(Reshapes(), image())
    assert {n.name for n in net.graph.nodes if "tensor_meta" not in n.meta} == {"size"}


def test_arguments_left_out_take_their_defaults() -> None:
    class Biased(Fc):
        def forward(self, x: Tensor, bias: Tensor | None = None, *, factor: int = 2) -> Tensor:
            return self.fc(x) * factor

    net = captured(Biased(), rows())
    assert shape_of(next(n for n in net.graph.nodes if n.name == "mul")) == (4, 2)


def test_refuses_inputs_that_do_not_fit() -> None:
    model = seeded(Mlp)
    net = CompressedModule(capture(model, bind(model, rows())), "Mlp")
    with pytest.raises(
        CaptureError, match=r"the example inputs do not fit the model: RuntimeError at 'fc1': .*pass inputs of"
    ):
        propagate_shapes(net, {"x": rows(5)})


def test_one_sample_is_enough_for_a_batch_norm_in_training_mode() -> None:
    net = captured(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), rows()[:1])
    assert shape_of(list(net.graph.nodes)[-2]) == (1, 2)
