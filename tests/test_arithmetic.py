"""The ways a runtime may add: exact where nothing leaves its range, and as a plain loop does it where something does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.arithmetic import Product, exact_sums, pair_saturated_sums, wrapped_sums

ZERO = 37


def product(function: Any, q: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Product:
    zero = torch.tensor(ZERO, dtype=torch.uint8)
    return Product(function, q.double() - ZERO, zero, weight, bias, rest)


def draw(low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def saturated_row(x: np.ndarray, w: np.ndarray) -> int:
    """The sum of products of uint8 and int8, neighbours saturating in 16 bits, without the zero point's part."""
    pairs = [sum(int(a) * int(b) for a, b in zip(x[k : k + 2], w[k : k + 2], strict=True)) for k in range(0, len(x), 2)]
    return sum(min(max(pair, -(2**15)), 2**15 - 1) for pair in pairs) - ZERO * int(w.astype(int).sum())


def test_sums_wrap_around_in_int32_and_only_there() -> None:
    q, weight = draw(38, 256, 4, 6), draw(-127, 128, 3, 6, dtype=torch.int8)
    bias = torch.tensor([0.0, 2.0**31 - 1, -(2.0**31) + 1], dtype=torch.float64)
    made = product(F.linear, q, weight, bias)
    exact = exact_sums(made).long()
    assert torch.equal(exact, (q.long() - ZERO) @ weight.long().T + bias.long())
    assert torch.equal(wrapped_sums(made).long(), exact.to(torch.int32).long())
    assert torch.equal(wrapped_sums(made)[:, 0].long(), exact[:, 0])
    assert bool((wrapped_sums(made).long() != exact)[:, 1:].any())


@pytest.mark.parametrize("features", [6, 7])
def test_pairs_of_a_linear_layer_saturate(features: int) -> None:
    q, weight = draw(150, 256, 4, features), draw(60, 128, 3, features, dtype=torch.int8)
    bias = torch.tensor([5.0, -5.0, 0.0], dtype=torch.float64)
    expected = [[saturated_row(x, w) + int(b) for w, b in zip(weight.numpy(), bias, strict=True)] for x in q.numpy()]
    found = pair_saturated_sums(product(F.linear, q, weight, bias))
    assert found.tolist() == expected
    assert not torch.equal(found, exact_sums(product(F.linear, q, weight, bias)))


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2)])
def test_pairs_of_a_convolution_saturate_along_channels_then_pixels(
    stride: int, padding: int, dilation: int, groups: int
) -> None:
    q, weight = draw(100, 256, 2, 6, 5, 5), draw(40, 128, 4, 6 // groups, 3, 3, dtype=torch.int8)
    made = product(F.conv2d, q, weight, None, (stride, stride), (padding, padding), (dilation, dilation), groups)
    found = pair_saturated_sums(made)
    padded = np.pad(q.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=ZERO)
    for n, o, y, x in np.ndindex(*found.shape):
        channels = slice(o // (4 // groups) * (6 // groups), (o // (4 // groups) + 1) * (6 // groups))
        rows, columns = (slice(at * stride, at * stride + 2 * dilation + 1, dilation) for at in (y, x))
        patch = padded[n, channels, rows, columns].transpose(1, 2, 0).reshape(-1)
        assert int(found[n, o, y, x]) == saturated_row(patch, weight[o].numpy().transpose(1, 2, 0).reshape(-1))
    assert not torch.equal(found, exact_sums(made))


@pytest.mark.parametrize(
    ("zero_type", "weight_type", "largest"),
    [(torch.uint8, torch.int8, 64), (torch.int8, torch.int8, 127), (torch.uint8, torch.int16, 127)],
)
def test_other_types_and_small_weights_are_exact(
    zero_type: torch.dtype, weight_type: torch.dtype, largest: int
) -> None:
    weight = torch.full((3, 6), largest, dtype=weight_type)
    made = Product(F.linear, torch.full((2, 6), 255.0).double(), torch.tensor(0, dtype=zero_type), weight, None, ())
    assert torch.equal(pair_saturated_sums(made), exact_sums(made))


def test_a_depthwise_convolution_is_exact() -> None:
    q, weight = draw(200, 256, 1, 4, 5, 5), draw(100, 128, 4, 1, 3, 3, dtype=torch.int8)
    made = product(F.conv2d, q, weight, None, (1, 1), (0, 0), (1, 1), 4)
    assert torch.equal(pair_saturated_sums(made), exact_sums(made))
