"""Operators that hand their input on are removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import HERE, Does, Fc, check_pass, check_unchanged, evaluation_copy, rows, seeded, trained
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import PassError
from fxcompress.passes import RemoveNeutral
from fxcompress.pipeline import run
from fxcompress.render import render

BEFORE = """
    input %x
    %mul = mul(%x, 1)
    %mul_quantizer = compression.mul_quantizer:Quantizer(%mul)
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%mul_quantizer, %fc_weight, %fc_bias)
    %fc_quantizer = compression.fc_quantizer:Quantizer(%fc)
    output %fc_quantizer
"""
AFTER = BEFORE.replace("    %mul = mul(%x, 1)\n", "").replace("Quantizer(%mul)", "Quantizer(%x)")


class Once(Fc):
    """Multiplies by one first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * 1)


class Twice(Fc):
    """Its input and once its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.fc(x * 1)


def quantized(forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    return evaluation_copy(trained(Does(forward), "Q8(f)", rows()))


def test_removes_a_multiplication_by_one() -> None:
    gm = evaluation_copy(trained(seeded(Once), "Q8(f)", rows()))
    check_pass(gm, RemoveNeutral(), before=BEFORE, after=AFTER, example=rows())


def test_what_becomes_the_same_is_exported_once(tmp_path: Path) -> None:
    net = trained(seeded(Twice), "Q8(w,f)", rows(), HERE)
    assert fxc.export_onnx(net, tmp_path / "net.onnx", rows()).ok


@pytest.mark.parametrize(
    "forward",
    [
        lambda _, x: (x / 1.0) + x,
        lambda _, x: (x + 0) + x,
        lambda _, x: (x - 0) + x,
        lambda self, x: self.layer(x) + x,
    ],
)
def test_removes_what_else_is_neutral(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    gm = quantized(forward)
    expected = gm(rows())
    assert run(gm, [RemoveNeutral()])  # type: ignore[arg-type]
    assert torch.equal(gm(rows()), expected)


@pytest.mark.parametrize(
    "forward",
    [
        lambda _, x: x * 2 + x,
        lambda _, x: x * 0 + x,
        lambda _, x: (x + 1) + x,
        lambda _, x: (1 - x) + x,
        lambda _, x: (1 / x) + x,
        lambda _, x: (x * 1).tanh_() + x,
    ],
)
def test_leaves_other_operators_alone(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    gm = quantized(forward)
    check_unchanged(gm, RemoveNeutral(), render(gm))  # type: ignore[arg-type]


def test_refuses_a_result_with_one_left() -> None:
    with pytest.raises(PassError, match="'mul' hands its input on as it is"):
        RemoveNeutral().ensures(evaluation_copy(trained(seeded(Once), "Q8(f)", rows())))
