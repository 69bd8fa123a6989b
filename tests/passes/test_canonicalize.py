"""One spelling an operator: what is respelled, what somebody else may see, what a method alone can do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Does, Residual, canonical, captured, check_pass, check_unchanged, image, rows, seeded
from torch import Tensor, nn

from fxcompress.errors import PassError
from fxcompress.passes import Canonicalize
from fxcompress.pipeline import run
from fxcompress.render import render

BEFORE = """
    input %x
    %conv_weight = conv.weight
    %conv_bias = conv.bias
    %conv = conv2d(%x, %conv_weight, %conv_bias, (1, 1), (0, 0), (1, 1), 1)
    %add_ = .add_(%conv, %x)
    output %add_
"""
AFTER = """
    input %x
    %conv_weight = conv.weight
    %conv_bias = conv.bias
    %conv = conv2d(%x, %conv_weight, %conv_bias, (1, 1), (0, 0), (1, 1), 1)
    %add_ = add(%conv, %x)
    output %add_
"""


def conv_does(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return Does(forward, nn.Conv2d(3, 3, 1))


def line(model: nn.Module, example: Tensor, name: str) -> str:
    """The canonical line that makes `%name`, once outputs are known to be the model's."""
    net = canonical(model, example)
    assert torch.equal(net.eval()(example.clone()), copy.deepcopy(model).eval()(example.clone()))
    return next(text for text in render(net).splitlines() if text.startswith(f"%{name} = "))


def test_spells_an_in_place_method_as_a_function() -> None:
    net = captured(seeded(Residual), image())
    check_pass(net, Canonicalize(), before=BEFORE, after=AFTER, example=image())


def test_leaves_alone_what_is_a_function_already() -> None:
    check_unchanged(canonical(seeded(Residual), image()), Canonicalize(), AFTER)


@pytest.mark.parametrize(
    ("forward", "name", "expected"),
    [
        (lambda m, x: F.relu(m.layer(x), inplace=True), "relu", "relu(%layer)"),
        (lambda m, x: F.relu(m.layer(x) + x, True), "relu", "relu(%add)"),
        (lambda m, x: m.layer(x).relu_(), "relu_", "relu(%layer)"),
        (lambda m, x: m.layer(x).add(x).mul(2), "mul", "mul(%add, 2)"),
        (lambda m, x: m.layer(x).permute(0, 2, 3, 1), "permute", "permute(%layer, (0, 2, 3, 1))"),
        (lambda m, x: m.layer(x).reshape((2, -1)), "reshape", "reshape(%layer, (2, -1))"),
        (lambda m, x: m.layer(x).reshape(x.size(0), -1), "reshape", "reshape(%layer, (%size, -1))"),
        (lambda m, x: torch.concat([m.layer(x), x]), "concat", "cat([%layer, %x])"),
    ],
)
def test_respells(forward: Callable[[Any, Tensor], Tensor], name: str, expected: str) -> None:
    assert line(conv_does(forward), image(), name) == f"%{name} = {expected}"


@pytest.mark.parametrize(
    ("forward", "name", "expected"),
    [
        (lambda m, x: x.add_(1).mul(2), "add_", ".add_(%x, 1)"),
        (lambda m, x: (y := m.layer(x), y.add_(1), y * 2)[-1], "add_", ".add_(%layer, 1)"),
        (lambda m, x: (y := m.layer(x), y.flatten(1).add_(1), y * 2)[-1], "add_", ".add_(%flatten, 1)"),
        (lambda m, x: (y := m.layer(x), torch.movedim(y, 1, 2).add_(1), y * 2)[-1], "add_", ".add_(%movedim, 1)"),
        (lambda m, x: (F.relu(x, inplace=True), m.layer(x))[-1], "relu", "relu(%x, inplace=True)"),
    ],
)
def test_leaves_alone_what_somebody_else_may_see(
    forward: Callable[[Any, Tensor], Tensor], name: str, expected: str
) -> None:
    assert line(conv_does(forward), image(), name) == f"%{name} = {expected}"


@pytest.mark.parametrize(
    ("forward", "name", "expected"),
    [
        (lambda m, x: m.layer(x).reshape(x.shape), "reshape", ".reshape(%layer, %getattr_1)"),
        (lambda m, x: m.layer(x).reshape(shape=(2, -1)), "reshape", ".reshape(%layer, shape=(2, -1))"),
        (lambda m, x: m.layer(x).permute(dims=(0, 2, 3, 1)), "permute", ".permute(%layer, dims=(0, 2, 3, 1))"),
        (lambda m, x: torch.relu(m.layer(x)), "relu", "relu(%layer)"),
    ],
)
def test_leaves_alone_what_has_no_other_spelling(
    forward: Callable[[Any, Tensor], Tensor], name: str, expected: str
) -> None:
    assert line(conv_does(forward), image(), name) == f"%{name} = {expected}"


@pytest.mark.parametrize(
    ("forward", "layer", "expected"),
    [
        (
            lambda m, x: F.conv2d(x, m.layer.weight, groups=3, padding=1),
            nn.Conv2d(3, 3, 3, groups=3),
            "conv2d(%x, %layer_weight, None, 1, 1, 1, 3)",
        ),
        (
            lambda m, x: F.conv_transpose2d(input=x, weight=m.layer.weight, bias=m.layer.bias, groups=1, stride=2),
            nn.ConvTranspose2d(3, 4, 3),
            "conv_transpose2d(%x, %layer_weight, %layer_bias, 2, 0, 0, 1)",
        ),
        (
            lambda m, x: F.linear(x, bias=m.layer.bias, weight=m.layer.weight),
            nn.Linear(4, 2),
            "linear(%x, %layer_weight, %layer_bias)",
        ),
    ],
)
def test_gives_products_their_arguments_by_position(
    forward: Callable[[Any, Tensor], Tensor], layer: nn.Module, expected: str
) -> None:
    name = expected.split("(")[0]
    assert line(Does(forward, layer), image(), name) == f"%{name} = {expected}"


def in_place_add(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y += x
    return y


def in_place_chain(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y += x
    y *= x
    return y


@pytest.mark.parametrize(
    ("forward", "name", "expected"),
    [
        (in_place_add, "iadd", "add(%layer, %x)"),
        (in_place_chain, "iadd", "add(%layer, %x)"),
        (in_place_chain, "imul", "mul(%iadd, %x)"),
    ],
)
def test_spells_in_place_operators_as_functions(
    forward: Callable[[Any, Tensor], Tensor], name: str, expected: str
) -> None:
    assert line(conv_does(forward), image(), name) == f"%{name} = {expected}"


def other_name(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y
    y += x
    return z + y


def view_before(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y.flatten(1)
    y -= x
    return z * y.flatten(1)


def through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y[:, 0]
    z *= 2
    return y


def twice(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y
    y *= x
    y /= 2
    return z + y


def of_the_input(m: Any, x: Tensor) -> Tensor:
    z = x
    x += 1
    return m.layer(z)


@pytest.mark.parametrize(
    ("forward", "name", "expected"),
    [
        (other_name, "iadd", "iadd(%layer, %x)"),
        (view_before, "isub", "isub(%layer, %x)"),
        (through_a_view, "imul", "imul(%getitem, 2)"),
        (twice, "imul", "imul(%layer, %x)"),
        (twice, "itruediv", "itruediv(%imul, 2)"),
        (of_the_input, "iadd", "iadd(%x, 1)"),
    ],
)
def test_in_place_operators_that_somebody_else_sees_stay_exact(
    forward: Callable[[Any, Tensor], Tensor], name: str, expected: str
) -> None:
    assert line(conv_does(forward), image(), name) == f"%{name} = {expected}"


def test_an_in_place_operator_on_the_input_changes_the_caller_s_tensor() -> None:
    net, example = canonical(conv_does(of_the_input), image()), image()
    net(example)
    assert torch.equal(example, image() + 1)


def test_refuses_a_product_with_keyword_arguments_left() -> None:
    net = captured(Does(lambda m, x: F.linear(x, weight=m.layer.weight), nn.Linear(3, 2)), rows())
    with pytest.raises(PassError, match=r"product 'linear' has keyword arguments \['weight'\]"):
        Canonicalize().ensures(net)
    assert run(net, [Canonicalize()])
