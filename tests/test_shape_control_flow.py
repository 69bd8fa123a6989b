"""Control flow on shapes and numbers, and what it assumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Does, assert_follows, assert_same, twins
from layers import A, Layer
from torch import Tensor, nn

from fxcompress.errors import InputError


def by_height(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if x.shape[2] > 4 else m.layer(2 * x)


def over_width(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    for i in range(x.shape[3]):
        y = y + x[..., i : i + 1]
    return y


def to_rows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.layer(x).reshape(b, c, h * w).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)


def with_len(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * len(x)


def with_int(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)[:, :, : int(x.shape[2] / 2)]


def with_ceil(m: Any, x: Tensor) -> Tensor:
    h = math.ceil(x.shape[-2] / 3) * 3
    return m.layer(F.pad(x, (0, 0, 0, h - x.shape[-2])))


def with_floor_and_sqrt(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * math.sqrt(x.shape[1]) + math.floor(x.size(3) / 3)


def with_max(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) / max(x.shape[2], 7)


def with_interpolate(m: Any, x: Tensor) -> Tensor:
    y = F.interpolate(m.layer(x), scale_factor=2.0)
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False) + x


def with_grid(m: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.size()
    grid = torch.arange(h, device=x.device)[:, None] * w + torch.arange(w, dtype=x.dtype)
    return m.layer(x) + grid + torch.linspace(0, 1, w) + torch.zeros(h, 1).new_ones(h, w)


def with_asserts(m: Any, x: Tensor) -> Tensor:
    assert x.ndim == 4
    assert x.shape[1] == 3, f"expected 3 channels, got {x.shape[1]}"
    torch._assert(x.shape[2] >= 2, "too small")
    return m.layer(x) if x.dtype == torch.float32 and x.is_floating_point() else x


def with_heads(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x).flatten(2).unflatten(2, (-1, 2))
    return (y @ y.transpose(-2, -1) / y.shape[-1] ** 0.5).softmax(-1)


def with_windows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x, (0, (3 - w % 3) % 3, 0, (3 - h % 3) % 3))
    x = x.view(b, c, x.shape[2] // 3, 3, x.shape[3] // 3, 3).permute(0, 2, 4, 1, 3, 5)
    return m.layer(x.reshape(-1, c, 3, 3))


def sized(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


SAME, ANY = [(3, 5, 4), (1, 5, 4)], [(3, 5, 4), (1, 5, 4), (2, 7, 8), (2, 6, 5)]
FLOWS: list[tuple[Callable[..., Tensor], list[tuple[int, int, int]], tuple[int, int, int] | None, str]] = [
    (by_height, [*SAME, (2, 7, 8), (2, 6, 5)], (2, 4, 4), r"where x\.shape\[2\] > 4 is True, and now it is False"),
    (over_width, [*SAME, (2, 9, 4)], (2, 5, 5), r"where x\.shape\[3\] is 4, and now it is 5"),
    (to_rows, ANY, None, ""),
    (with_len, [(2, 5, 4), (2, 7, 8)], (3, 5, 4), r"where the length of x is 2, and now it is 3"),
    (with_int, [*SAME, (2, 5, 9)], (2, 9, 4), r"where x\.shape\[2\] / 2 is 2\.5, and now it is 4\.5"),
    (with_ceil, ANY, None, ""),
    (with_floor_and_sqrt, ANY, None, ""),
    (with_max, [*SAME, (2, 6, 4)], (2, 9, 4), r"where x\.shape\[2\] < 7 is True, and now it is False"),
    (with_interpolate, ANY, None, ""),
    (with_grid, ANY, None, ""),
    (with_asserts, ANY, (2, 1, 4), "too small|x\\.shape\\[2\\] >= 2"),
    (with_heads, [*SAME, (2, 7, 8), (2, 6, 5)], None, ""),
    (with_windows, ANY, None, ""),
]


@pytest.mark.parametrize(("forward", "fine", "broken", "message"), FLOWS, ids=[f[0].__name__ for f in FLOWS])
def test_control_flow_on_shapes(forward: Any, fine: Any, broken: Any, message: str) -> None:
    model, net = twins(Does(forward, nn.Conv2d(3, 3, 1)), sized(2, 5, 4))
    assert not net.islands
    assert_follows(model, net, sized(2, 5, 4))
    for size in fine:
        assert_follows(model, net, sized(*size))
    if broken is not None:
        with pytest.raises((InputError, AssertionError), match=message):
            net(sized(*broken))


def test_an_error_names_the_assumption_and_says_what_to_do() -> None:
    _, net = twins(Does(by_height, nn.Conv2d(3, 3, 1)), sized(2, 5, 4))
    with pytest.raises(InputError) as found:
        net(sized(2, 3, 3))
    assert str(found.value) == (
        "the model was captured where x.shape[2] > 4 is True, and now it is False; compress with example inputs like "
        "those that the net is called with"
    )


def test_control_flow_on_numbers() -> None:
    class Powers(Layer):
        def forward(self, x: Tensor, n: int, p: float = 0.5) -> Tensor:
            return self.fc(x) ** n * p if p > 0.1 else self.fc(x)

    model, net = twins(Powers(), (A, 2))
    for args in ((A, 2), (A, 3), (A, 3, 0.2), (A, 2, 4.0)):
        assert_follows(model, net, *args)
    with pytest.raises(InputError, match=r"where p > 0\.1 is True, and now it is False"):
        net(A, 2, 0.05)


class Checks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        torch._check(x.shape[0] > 3, lambda: "too few rows")
        return self.fc(x)


def test_checks_of_torch_are_kept() -> None:
    model, net = twins(Checks(), A)
    assert not net.islands
    assert_follows(model, net, A)
    with pytest.raises((InputError, RuntimeError), match=r"too few rows|where x\.shape\[0\] > 3 is True"):
        net(A[:2])


def test_a_dynamic_batch_and_size_without_any_assumption() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model, net = twins(model, sized(2, 5, 4))
    for size in ((2, 5, 4), (1, 9, 3), (7, 1, 1)):
        assert_same(model.eval(), net.eval(), sized(*size))
