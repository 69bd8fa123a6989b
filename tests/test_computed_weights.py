"""Weights wherever they are: parametrized, computed by hooks, tied, used by functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_follows, image, twins
from layers import A
from torch import Tensor, nn

import fxcompress as fxc


def weighted(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(6, 6)), nn.ReLU(), norm(nn.Linear(6, 3)))


PARAMETRIZED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrized_weights(kind: str) -> None:
    model, net = twins(weighted(PARAMETRIZED[kind]), A, "Q8(f)")
    for twin in (net, copy.deepcopy(net)):
        original = copy.deepcopy(model)
        for _ in range(2):
            assert_follows(original, twin, A)


def test_the_vectors_of_spectral_norm_move_in_training_alone() -> None:
    model, net = twins(weighted(PARAMETRIZED["spectral_norm"]), A, "Q8(f)")
    vectors = dict(net.named_buffers())
    moving = [name for name, _ in model.named_buffers()]
    assert [name.rpartition(".")[2] for name in moving] == ["_u", "_v"] * 2
    before = {name: vectors[name].clone() for name in moving}
    net.eval()(A)
    assert all(torch.equal(before[name], vectors[name]) for name in moving)
    net.train()(A)
    assert not any(torch.equal(before[name], vectors[name]) for name in moving)


def old(norm: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def apply(layer: nn.Module) -> nn.Module:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return norm(layer)

    return apply


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=lambda f: f.__name__)
def test_weights_that_hooks_compute(norm: Any) -> None:
    model = weighted(old(norm))
    net = fxc.compress(weighted(old(norm)), "Q8(f)", A, total_steps=10)
    assert [k for k in net.state_dict() if not k.startswith(("_extra", "compression"))] == list(model.state_dict())
    for _ in range(2):
        assert_follows(model, net, A)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(self.fc(self.embed(ids)))))


def test_tied_weights_have_one_pruner_and_quantizer() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    model, net = twins(Tied(), ids)
    assert_follows(model, net, ids)
    weights = [path for path, _ in net.compression.named_modules() if path.endswith("weight_pruner")]
    assert sorted(weights) == ["embed.weight_pruner", "fc.weight_pruner"]
    assert net.head.weight is net.embed.weight


class Functional(nn.Module):
    """Weights that no layer owns, and layers whose weights are used without them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.rand(4, 1, 1))})
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=1) * self.named["scale"]
        y = F.linear(y.mean((2, 3)), *self.layers)
        return (
            F.linear(y, self.fc.weight)
            + y @ self.fc.weight.t()
            + F.linear(input=y, weight=self.fc.weight, bias=self.fc.bias)
        )


def test_functional_use_of_weights() -> None:
    model, net = twins(Functional(), image())
    assert_follows(model, net, image())
    found = {r.name for r in fxc.report(net).rows if r.kind == "weight" and r.rewritten}
    assert found == {"weight", "layers.0", "fc.weight"}
