"""Which channels go together, seen on small nets of each kind: what is tied, what stays, what is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Does, canonical, image
from torch import Tensor, nn

from fxcompress.channels import Channels, find_channels
from fxcompress.groups import find_groups


def found(forward: Callable[[Any, Tensor], Tensor], *layers: nn.Module, example: Tensor | None = None) -> Channels:
    """The channels of a net that does this with these layers, its output taken by a last convolution or linear layer."""
    model = Does(forward, nn.ModuleList(layers))
    return find_channels(canonical(model, image() if example is None else example).views())


def groups(channels: Channels) -> dict[tuple[str, ...], int]:
    """How many channels each group has, by the weights' layers."""
    return {
        tuple(w.removeprefix("layer.").removesuffix(".weight") for w in group.weights): len(group.roots)
        for group in find_groups(channels)
    }


def conv(read: int, yields: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(read, yields, 1, **more)


def test_channels_between_two_products_are_free_and_outputs_stay() -> None:
    channels = found(lambda m, x: m.layer[1](m.layer[0](x).relu()), conv(3, 6), conv(6, 2))
    assert groups(channels) == {("0",): 6}


def test_an_addition_ties_both_sides() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        return m.layer[2](y + m.layer[1](y))  # type: ignore[no-any-return]

    assert groups(found(forward, conv(3, 6), conv(6, 6), conv(6, 2))) == {("0", "1"): 6}


def test_what_is_added_to_an_input_stays() -> None:
    assert groups(found(lambda m, x: m.layer[1](x + m.layer[0](x)), conv(3, 3), conv(3, 2))) == {}


def test_parts_of_a_concatenation_are_free_of_each_other() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.layer[2](torch.cat([m.layer[0](x), m.layer[1](x)], 1))  # type: ignore[no-any-return]

    assert groups(found(forward, conv(3, 4), conv(3, 6), conv(10, 2))) == {("0",): 4, ("1",): 6}


def test_chunks_are_followed_each_by_itself() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.layer[0](x).chunk(2, 1)
        return m.layer[1](a) + m.layer[2](b)  # type: ignore[no-any-return]

    channels = found(forward, conv(3, 8), conv(4, 2), conv(4, 2))
    assert groups(channels) == {("0",): 8}


@pytest.mark.parametrize(("multiplier", "weights"), [(1, ("0", "1")), (2, ("0", "1"))])
def test_a_depthwise_convolution_goes_with_its_input(multiplier: int, weights: tuple[str, ...]) -> None:
    layers = conv(3, 6), conv(6, 6 * multiplier, groups=6), conv(6 * multiplier, 2)
    assert groups(found(lambda m, x: m.layer[2](m.layer[1](m.layer[0](x))), *layers)) == {weights: 6}


@pytest.mark.parametrize("transposed", [False, True])
def test_a_grouped_convolution_loses_whole_groups(transposed: bool) -> None:
    grouped = nn.ConvTranspose2d(8, 12, 1, groups=4) if transposed else conv(8, 12, groups=4)
    channels = found(lambda m, x: m.layer[2](m.layer[1](m.layer[0](x))), conv(3, 8), grouped, conv(12, 2))
    assert groups(channels) == {("0", "1"): 4}


def test_flatten_hands_every_place_of_a_channel_on() -> None:
    channels = found(lambda m, x: m.layer[1](m.layer[0](x).flatten(1)), conv(3, 6), nn.Linear(6 * 16, 2))
    assert groups(channels) == {("0",): 6}
    labels = channels.unions.roots(channels.axes["layer.1.weight", 1])
    assert labels.view(6, 16).eq(labels.view(6, 16)[:, :1]).all()


def test_squeeze_and_excitation_goes_with_what_it_scales() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        gate = torch.sigmoid(m.layer[2](m.layer[1](F.adaptive_avg_pool2d(y, 1)).relu()))
        return m.layer[3](y * gate)  # type: ignore[no-any-return]

    channels = found(forward, conv(3, 6), conv(6, 4), conv(4, 6), conv(6, 2))
    assert groups(channels) == {("0", "2"): 6, ("1",): 4}


def test_a_channel_that_scales_all_others_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.layer[2](m.layer[0](x) * m.layer[1](x))  # type: ignore[no-any-return]

    assert groups(found(forward, conv(3, 6), conv(3, 1), conv(6, 2))) == {("0",): 6}


def test_what_a_product_reads_behind_a_sigmoid_stays() -> None:
    assert groups(found(lambda m, x: m.layer[1](torch.sigmoid(m.layer[0](x))), conv(3, 6), conv(6, 2))) == {}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True)])
def test_normalizations_of_single_channels_go_with_them(norm: nn.Module) -> None:
    channels = found(lambda m, x: m.layer[2](m.layer[1](m.layer[0](x))), conv(3, 6), norm, conv(6, 2))
    assert groups(channels) == {("0",): 6} and set(channels.norms) == {"layer.1"}


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.LayerNorm([6, 4, 4]), nn.Softmax(1)])
def test_channels_that_are_mixed_stay(norm: nn.Module) -> None:
    assert groups(found(lambda m, x: m.layer[2](m.layer[1](m.layer[0](x))), conv(3, 6), norm, conv(6, 2))) == {}


def test_a_shuffle_takes_as_many_from_each_of_its_groups() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        b, c, h, w = y.shape
        return m.layer[1](y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))  # type: ignore[no-any-return]

    channels = found(forward, conv(3, 8), conv(8, 2))
    assert groups(channels) == {("0",): 4}
    roots = channels.unions.roots(channels.axes["layer.0.weight", 0])
    assert torch.equal(roots[:4], roots[4:])
    assert groups(found(lambda m, x: m.layer[1](F.channel_shuffle(m.layer[0](x), 2)), conv(3, 8), conv(8, 2))) == {
        ("0",): 4
    }


def test_pixel_shuffle_ties_what_becomes_one_channel() -> None:
    channels = found(lambda m, x: m.layer[1](F.pixel_shuffle(m.layer[0](x), 2)), conv(3, 12), conv(3, 2))
    assert groups(channels) == {("0",): 3}


def test_heads_of_attention_go_as_a_whole() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = m.layer[0](x).reshape(b, n, 3, 4, 2).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * 2**-0.5).softmax(-1)
        return m.layer[1]((scores @ v).transpose(1, 2).reshape(b, n, 8))  # type: ignore[no-any-return]

    channels = found(forward, nn.Linear(5, 24), nn.Linear(8, 5), example=torch.randn(2, 3, 5))
    assert groups(channels) == {("0",): 4}
    roots = channels.unions.roots(channels.axes["layer.0.weight", 0]).view(3, 4, 2)
    assert roots.eq(roots[:1, :, :1]).all()


def test_multi_head_attention_of_torch_loses_heads() -> None:
    attention = nn.MultiheadAttention(8, 4, batch_first=True)
    channels = found(lambda m, x: m.layer[0](x, x, x, need_weights=False)[0], attention, example=torch.randn(2, 3, 8))
    assert groups(channels) == {("0.in_proj_weight",): 4}


def test_embeddings_lose_features() -> None:
    tokens = torch.tensor([[1, 2, 0]])
    channels = found(lambda m, x: m.layer[1](m.layer[0](x)), nn.Embedding(5, 6), nn.Linear(6, 2), example=tokens)
    assert groups(channels) == {("0",): 6}


def test_gates_of_linear_units_go_with_what_they_gate() -> None:
    channels = found(lambda m, x: m.layer[1](F.glu(m.layer[0](x), 1)), conv(3, 8), conv(4, 2))
    assert groups(channels) == {("0",): 4}


def test_a_layer_used_twice_ties_both_of_its_inputs() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.layer[2](m.layer[0](x)) + m.layer[2](m.layer[1](x))  # type: ignore[no-any-return]

    assert groups(found(forward, conv(3, 6), conv(3, 6), conv(6, 2))) == {("0", "1"): 6}


def test_a_shortcut_that_pads_channels_ties_what_it_is_added_to() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer[0](x)
        return m.layer[2](F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.layer[1](y)[:, :, ::2, ::2])  # type: ignore[no-any-return]

    channels = found(forward, conv(3, 4), conv(4, 8), conv(8, 2))
    assert groups(channels) == {("0", "1"): 4, ("1",): 4}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.layer[1](torch.flip(m.layer[0](x), (1,))),
        lambda m, x: m.layer[1](m.layer[0](x)[:, ::2].repeat(1, 2, 1, 1)),
        lambda m, x: m.layer[1](torch.roll(m.layer[0](x), 1, 1)),
        lambda m, x: m.layer[1](m.layer[0](x).cumsum(1)),
        lambda m, x: m.layer[1](m.layer[0](x)) * m.layer[0].weight.sum(),
    ],
    ids=["flip", "stride", "roll", "cumsum", "weight used elsewhere"],
)
def test_what_is_not_understood_stays(forward: Callable[[Any, Tensor], Tensor]) -> None:
    assert groups(found(forward, conv(3, 6), conv(6, 2))) == {}
