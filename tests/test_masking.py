"""Products with masks: the same bits as `x * mask`, whatever type, layout and shape of the mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.masking import CHUNK, mask_, masked

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMATS = [torch.contiguous_format, torch.channels_last]
MASKS = ["whole", "sample", "channels", "weight channels"]


def bits(t: Tensor) -> bytes:
    return t.detach().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def mask_for(x: Tensor, kind: str) -> Tensor:
    shapes = {
        "whole": x.shape,
        "sample": x.shape[1:],
        "channels": (x.shape[1], 1, 1),
        "weight channels": (x.shape[0], 1, 1, 1),
    }
    return torch.rand(shapes[kind]) > 0.5


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    kind=st.sampled_from(MASKS),
    dtype=st.sampled_from(TYPES),
    layout=st.sampled_from(FORMATS),
    seed=st.integers(0, 99),
)
def test_it_is_the_product_to_the_bit(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, layout: torch.memory_format, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(shape).to(dtype).to(memory_format=layout).requires_grad_()
    mask, gradient = mask_for(x, kind), torch.randn(shape).to(dtype)
    expected, y = x * mask, masked(x, mask)
    assert bits(y) == bits(expected)
    laid = [[s for s, n in zip(t.stride(), shape, strict=True) if n > 1] for t in (y, expected)]
    assert laid[0] == laid[1]
    [wanted] = torch.autograd.grad(expected, x, gradient)
    [found] = torch.autograd.grad(y, x, gradient)
    assert bits(found) == bits(wanted)
    [dense] = torch.autograd.grad(masked(x, mask, True), x, gradient)
    assert bits(dense) == bits(gradient)


def test_what_is_not_finite_is_as_in_a_product() -> None:
    x, mask = torch.tensor([torch.inf, -torch.inf, torch.nan, -1.0] * 2), torch.arange(8) < 4
    assert torch.equal(masked(x, mask), x * mask) or bits(masked(x, mask)) == bits(x * mask)


@pytest.mark.parametrize("shape", [(3, CHUNK), (2 * CHUNK + 5, 1), (7, 3)])
def test_in_place_it_is_the_same(shape: tuple[int, ...]) -> None:
    x, mask = torch.randn(shape), torch.rand(shape) > 0.5
    assert bits(mask_(x.clone(), mask)) == bits(x * mask)


def test_an_empty_batch_and_a_second_derivative() -> None:
    mask = torch.rand(3, 2, 2) > 0.5
    assert masked(torch.zeros(0, 3, 2, 2), mask).shape == (0, 3, 2, 2)
    assert torch.autograd.gradgradcheck(
        lambda x: masked(x, mask) ** 2, torch.randn(2, 3, 2, 2).double().requires_grad_()
    )


def test_function_transforms_pass() -> None:
    mask, x = torch.rand(4) > 0.5, torch.randn(5, 4)
    grads = torch.func.vmap(torch.func.grad(lambda one: (masked(one, mask) ** 2).sum()))(x)
    assert torch.equal(grads, 2 * x * mask)
