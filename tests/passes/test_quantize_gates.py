"""SiLU between two quantizers is computed with a quantized sigmoid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import canonical, check_pass, check_unchanged, enable, image, seeded, trained, twins
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import PassError
from fxcompress.frozen import freeze
from fxcompress.gates import gated
from fxcompress.passes import QuantizeActivations, QuantizeGates
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.spec import Quantize

BEFORE = """
    input %x
    %conv_weight = conv.weight
    %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %bn = bn:BatchNorm2d(%conv)
    %bn_quantizer = compression.bn_quantizer:Quantizer(%bn)
    %silu = silu:SiLU(%bn_quantizer)
    %silu_quantizer = compression.silu_quantizer:Quantizer(%silu)
    %last_weight = last.weight
    %last = conv2d(%silu_quantizer, %last_weight, None, (1, 1), (0, 0), (1, 1), 1)
    output %last
"""
AFTER = BEFORE.replace("silu:SiLU(", "silu(").replace("Quantizer(%silu)", "Quantizer(%silu, %bn_quantizer)")


class Gated(nn.Module):
    """SiLU, in place, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.silu = nn.SiLU(inplace=True)
        self.last = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.silu(self.bn(self.conv(x))))
        return out


class Seen(Gated):
    """What SiLU overwrites is added behind it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        out: Tensor = self.last(self.silu(y)) + self.last(y)
        return out


def quantized(model: nn.Module, *names: str) -> fxc.CompressedModule:
    """The model with quantizers on these activations."""
    net: fxc.CompressedModule = canonical(model, image())
    run(net, [QuantizeActivations({n: Quantize(target="activation", bits=8, first_last_bits=8) for n in names})])
    return net


def test_hands_the_quantizer_the_functions_input() -> None:
    net = quantized(seeded(Gated), "bn", "silu")
    check_pass(net, QuantizeGates(), before=BEFORE, after=AFTER, example=image())


def test_nothing_changes_before_the_event() -> None:
    original, net = twins(seeded(Gated), image())
    for mode in (True, False):
        assert torch.equal(net.train(mode)(image()), original.train(mode)(image()))


def test_the_enabled_quantizer_rounds_the_gated_form() -> None:
    net = quantized(seeded(Gated), "bn", "silu").eval()
    run(net, [QuantizeGates()])
    enable(net)
    bn, silu = (net.get_submodule(f"compression.{name}_quantizer") for name in ("bn", "silu"))
    ungated = bn(net.bn(net.conv(image())))
    assert torch.equal(net(image()), net.last(silu(gated(ungated))))


def test_gates_are_close_and_large_values_pass() -> None:
    x = torch.linspace(-8, 20, 1001, requires_grad=True)
    assert float((gated(x) - F.silu(x)).detach().abs().max()) < 0.02
    assert torch.equal(gated(x)[x > 8], x[x > 8])
    [grad] = torch.autograd.grad(gated(x).sum(), x)
    assert float(grad.isfinite().all())


def test_a_frozen_net_computes_what_the_trained_one_does(tmp_path: Path) -> None:
    net = trained(seeded(Gated), "Q8(w,f)", image())
    text = render(freeze(net))
    assert "%silu_gate = quantize_dequantize(%silu_sigmoid, " in text
    assert "%silu_gated = mul(%bn_quantizer, %silu_gate)" in text
    found = fxc.export_onnx(net, tmp_path / "net.onnx", image())
    assert found.ok, str(found)
    assert found.integer_operators["QLinearSigmoid"] == found.integer_operators["QLinearMul"] == 1


@pytest.mark.parametrize("names", [["bn"], ["silu"]])
def test_leaves_alone_a_function_with_a_float_side(names: list[str]) -> None:
    net = quantized(seeded(Gated), *names)
    check_unchanged(net, QuantizeGates(), render(net))


def test_leaves_alone_what_somebody_else_sees() -> None:
    net = quantized(seeded(Seen), "bn", "silu")
    check_unchanged(net, QuantizeGates(), render(net))


def test_refuses_a_result_that_is_not_gated() -> None:
    with pytest.raises(PassError, match="'silu' stands between two quantizers and is not gated"):
        QuantizeGates().ensures(quantized(seeded(Gated), "bn", "silu"))
