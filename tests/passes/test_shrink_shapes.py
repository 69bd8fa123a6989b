"""Numbers in a graph that fit tensors with fewer channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Does, canonical, check_unchanged, image, text
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.channels import find_channels
from fxcompress.errors import PassError
from fxcompress.module import CompressedModule
from fxcompress.passes import ShrinkShapes
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.shrinking import Removal, remove

BEFORE = """
    input %x
    %layer_0_weight = layer.0.weight
    %layer_0_bias = layer.0.bias
    %layer_0 = conv2d(%x, %layer_0_weight, %layer_0_bias, (1, 1), (0, 0), (1, 1), 1)
    %reshape = reshape(%layer_0, (2, 96))
    %layer_1_weight = layer.1.weight
    %layer_1_bias = layer.1.bias
    %layer_1 = linear(%reshape, %layer_1_weight, %layer_1_bias)
    output %layer_1
"""
AFTER = """
    input %x
    %layer_0_weight = layer.0.weight
    %layer_0_bias = layer.0.bias
    %layer_0 = conv2d(%x, %layer_0_weight, %layer_0_bias, (1, 1), (0, 0), (1, 1), 1)
    %reshape = reshape(%layer_0, (2, 64))
    %layer_1_weight = layer.1.weight
    %layer_1_bias = layer.1.bias
    %layer_1 = linear(%reshape, %layer_1_weight, %layer_1_bias)
    output %layer_1
"""


def made(forward: Callable[[Any, Tensor], Tensor], *layers: nn.Module) -> CompressedModule:
    return canonical(Does(forward, nn.ModuleList(layers)), image())  # type: ignore[no-any-return]


def without(net: CompressedModule, places: list[int]) -> Tensor:
    """What `net` yields after it lost these channels of its first layer, which are zero before."""
    channels = find_channels(net.views())
    net.layer[0].weight.data[places] = 0
    net.layer[0].bias.data[places] = 0
    expected = net(image())
    labels = channels.axes["layer.0.weight", 0][places]
    remove(net, Removal(channels, set(channels.unions.roots(labels).tolist())))
    torch.testing.assert_close(net(image()), expected)
    return expected


def flattening() -> CompressedModule:
    return made(lambda m, x: m.layer[1](m.layer[0](x).reshape(2, 96)), nn.Conv2d(3, 6, 1), nn.Linear(96, 2))


def test_fits_a_shape_that_the_model_wrote_down() -> None:
    net = flattening()
    assert render(net) == text(BEFORE)
    without(net, [1, 4])
    assert render(net) == text(AFTER)


def test_leaves_alone_what_has_its_shape() -> None:
    check_unchanged(flattening(), ShrinkShapes({}, {}), BEFORE)


@pytest.mark.parametrize(
    ("forward", "yields", "line"),
    [
        (lambda m, x: m.layer[1](m.layer[0](x)[:, :4]), 4, "slice(None, 3, None)"),
        (lambda m, x: m.layer[1](m.layer[0](x)[:, 2:]), 4, "slice(1, None, None)"),
        (lambda m, x: m.layer[1](torch.cat(m.layer[0](x).split([2, 4], 1)[::-1], 1)), 6, "[1, 4]"),
        (lambda m, x: m.layer[1](torch.cat(m.layer[0](x).chunk(2, 1), 1)), 6, "split("),
        (lambda m, x: m.layer[1](m.layer[0](x).unflatten(1, (6, 1)).flatten(1, 2)), 6, "(5, 1)"),
        (lambda m, x: m.layer[1](m.layer[0](x).mean((2, 3), keepdim=True).expand(2, 6, 4, 4)), 6, ", 2, 5, 4, 4)"),
    ],
    ids=["slice from the start", "slice to the end", "split", "chunk", "unflatten", "expand"],
)
def test_fits_parts_and_sizes(forward: Callable[[Any, Tensor], Tensor], yields: int, line: str) -> None:
    net = made(forward, nn.Conv2d(3, 6, 1), nn.Conv2d(yields, 2, 1))
    without(net, [1])
    assert line in render(net)


@pytest.mark.parametrize(("place", "line"), [(1, "1, 2)"), (0, "0, 2)")])
def test_padding_with_channels_follows(place: int, line: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        return m.layer[2](F.pad(m.layer[1](x), (0, 0, 0, 0, 2, 2)) + y)  # type: ignore[no-any-return]

    net = made(forward, nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1))
    without(net, [0, 1][: 2 - place])
    assert f"(0, 0, 0, 0, {line}" in render(net)


def test_groups_of_a_convolution_get_fewer() -> None:
    layers = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 1, groups=3, bias=False), nn.Conv2d(12, 2, 1)
    net = made(lambda m, x: m.layer[2](m.layer[1](m.layer[0](x))), *layers)
    without(net, [2, 3])
    assert "(1, 1), 2)" in render(net)


def test_numbers_that_were_sizes_keep_what_they_were() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        return m.layer[1](y * y.shape[1] ** -0.5)  # type: ignore[no-any-return]

    net = made(forward, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1))
    without(net, [0])  # which compares the outputs
    assert f"mul(%layer_0, {6**-0.5})" in render(net)


def test_assumptions_follow() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        return m.layer[1](y if y.shape[1] == 6 else -y)  # type: ignore[no-any-return]

    net = made(forward, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1))
    without(net, [5])
    assert "assume(" in render(net)  # and the call in `without` was not refused


def test_refuses_what_nothing_can_fit() -> None:
    net = flattening()
    [flatten] = [n for n in net.graph.nodes if n.name == "reshape"]
    flatten.target, flatten.args = torch.squeeze, (flatten.args[0],)
    kept: dict[Node, Any] = {flatten: (None, torch.zeros(96, dtype=torch.bool))}
    with pytest.raises(PassError, match="cannot be made to yield the shape"):
        run(net, [ShrinkShapes(kept, {})])
