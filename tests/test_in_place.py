"""Code that writes in place: into activations, inputs, views and buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Does, assert_follows, copies, twins
from layers import A, B, Layer
from torch import Tensor, nn


def written(m: Any, x: Tensor) -> Tensor:
    y = z = m.layer(x)
    y += 1
    return y.mul_(3) * (2 if y is z else 1)


@pytest.mark.xfail(strict=True, reason="what writes in place yields another symbol than the one it writes to")
def test_what_is_written_in_place_stays_itself() -> None:
    model, net = twins(Does(written, nn.Linear(6, 6)), A)
    assert_follows(model, net, A)


def write_column(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y[:, 0] = x[:, 1]
    y[1:, 2:4] *= 2
    return y


def write_input(m: Any, x: Tensor) -> Tensor:
    x[:, 0] = 1.0
    x += 1
    return m.layer(x)


def write_view(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x).clone()
    left, right = y[:, :3], y.narrow(1, 3, 3)
    left += right
    left.relu_()
    return y


def write_alias(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y
    z += x
    return y * z


def rebind(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y
    z = z + x
    return y * z


def write_unused(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y.mul_(2)
    F.dropout(y, 0.5, True, inplace=True)
    torch.negative_(y)
    y.view(-1)[0].zero_()
    return y


def write_out(m: Any, x: Tensor) -> Tensor:
    buffer = torch.empty(0)
    with torch.no_grad():
        torch.mul(x, 2, out=buffer)
    return m.layer(buffer)


def write_zeros(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 6)
    y[:, ::2] = m.layer(x)[:, ::2]
    y[:, 1] += 1
    return y


def write_constant(m: Any, x: Tensor) -> Tensor:
    y = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y += 1
    y[0] = 7
    return m.layer(x) * y


def write_list(m: Any, x: Tensor) -> Tensor:
    y = torch.full((2,), 3.0)
    y[0] += x.shape[0]
    parts = [m.layer(x)]
    for i in range(2):
        parts.append(parts[-1].add_(y[i]))
    return torch.cat(parts)


def write_masked(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y.masked_fill_(x > 0, 0.5)
    z = torch.ones_like(y)
    z[x < 0] = 0
    return y * z.triu_()


def write_index(m: Any, x: Tensor) -> Tensor:
    index = torch.arange(x.shape[1]).flip(0)
    y = torch.zeros_like(x)
    y.index_copy_(1, index, m.layer(x))
    return y.scatter_add_(1, index.expand_as(x), x)


IN_PLACE = [
    write_column, write_input, write_view, write_alias, rebind, write_unused, write_out, write_zeros, write_constant,
    write_list, write_masked, write_index,
]  # fmt: skip


@pytest.mark.parametrize("forward", IN_PLACE, ids=lambda f: f.__name__)
def test_in_place_code(forward: Any) -> None:
    model, net = twins(Does(forward, nn.Linear(6, 6)), A)
    assert not net.islands
    for x in (A, B, A):
        assert_follows(model, net, x)
    if forward is not write_list:
        assert_follows(model, net, torch.cat([A, B]))


class Accumulates(Layer):
    """Writes to a buffer of its own, in place and by assignment of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total += x.detach().sum(0)
            self.steps.add_(1)
            self.total[0] = 1.0
        return self.fc(x) - self.total / self.steps


def test_buffers_are_written_as_by_the_model() -> None:
    model, net = twins(Accumulates(), A)
    assert not net.total.any()
    for twin in copies(net):
        original = copy.deepcopy(model)
        assert_follows(original, twin, A)
        assert_follows(original, twin, B)
        assert int(twin.steps) == 4


class Assigned(Accumulates):
    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total * 0.5 + x.detach().sum(0)
        return self.fc(x) - self.total


def test_a_buffer_that_is_assigned_makes_an_island() -> None:
    model, net = twins(Assigned(), A)
    assert "changes" in net.islands[""].reason
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, A)
