"""Training state becomes constants."""

from __future__ import annotations

import pytest
import torch
from helpers import Cat, Fc, Mlp, Shared, after, check_pass, check_unchanged, constants, image, rows, seeded, trained
from torch import Tensor, nn

from fxcompress.errors import PassError
from fxcompress.frozen import evaluation_copy
from fxcompress.passes import Freeze, RemoveDisabled
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Quantize

INPUT_AND_WEIGHTS = [
    Quantize(target="activation", bits=8, match={"name": "x"}),
    Quantize(target="weight", bits=8),
]
BEFORE = """
    input %x
    %x_quantizer = compression.x_quantizer:Quantizer(%x)
    %fc_weight = fc.weight
    %fc_weight_quantizer = compression.fc.weight_quantizer:Quantizer(%fc_weight)
    %fc_bias = fc.bias
    %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias)
    output %fc
"""
AFTER = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %fc_weight_integers = fc.weight_integers
    %fc_weight_scale = fc.weight_scale
    %fc_weight_zero_point = fc.weight_zero_point
    %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)
    %fc_bias = fc.bias
    %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias)
    output %fc
"""
FLOAT = """
    input %x
    %fc_weight = fc.weight
    %fc_bias = fc.bias
    %fc = linear(%x, %fc_weight, %fc_bias)
    output %fc
"""


def test_turns_quantizers_into_functions_of_constants() -> None:
    gm = evaluation_copy(trained(seeded(Fc), INPUT_AND_WEIGHTS, rows()))
    check_pass(gm, Freeze(), before=BEFORE, after=AFTER, example=rows())


def test_stores_integers_of_their_width_and_the_scales_bits() -> None:
    net = trained(seeded(Fc), INPUT_AND_WEIGHTS, rows())
    stored = constants(after([Freeze()], net), "fc")
    quantizer = net.get_submodule("compression.fc.weight_quantizer")
    assert stored["weight_integers"].dtype == stored["weight_zero_point"].dtype == torch.int8
    assert torch.equal(stored["weight_scale"], quantizer.scale)
    expected = torch.round(net.fc.weight / quantizer.scale[:, None]).clamp(-127, 127)
    assert torch.equal(stored["weight_integers"].float(), expected)


@pytest.mark.parametrize("spec", ["P0.5(w,f) -> Q8(w,f)", "Q8(w,f) -> P0.5(w,f)", "P0.5(w,f)", "Q4(w) -> Q8(f)"])
@pytest.mark.parametrize("model", [Mlp, Shared])
def test_computes_what_the_net_computes(model: type[Mlp | Shared], spec: str) -> None:
    net = trained(seeded(model), spec, rows())
    assert torch.equal(after([RemoveDisabled(), Freeze()], net)(rows()), net(rows()))


def test_a_mask_moves_behind_the_quantizer() -> None:
    gm = after([RemoveDisabled(), Freeze()], trained(seeded(Mlp), "P0.5(f) -> Q8(f)", rows()))
    lines = render(gm).splitlines()
    assert any(line.startswith("%relu_quantizer = quantize_dequantize(%relu,") for line in lines)
    assert any(line.startswith("%relu_pruner = mul(%relu_quantizer, %relu_pruner_mask)") for line in lines)


def test_masked_weights_are_stored_as_zero() -> None:
    net = trained(seeded(Mlp), "P0.5(w) -> Q8(w)", rows())
    stored = constants(after([RemoveDisabled(), Freeze()], net), "fc1")
    mask = net.get_submodule("compression.fc1.weight_pruner").mask
    assert int((~mask).sum()) == 6
    assert not stored["weight_integers"][~mask].any()


def test_a_shared_quantizer_has_one_pair_of_constants() -> None:
    gm = after([RemoveDisabled(), Freeze()], trained(seeded(Cat), "Q8(f)", image()))
    assert render(gm).count(" = compression.a_quantizer_constants.scale") == 2
    assert "b_quantizer_constants" not in render(gm)


def test_a_buffer_of_the_model_s_own_keeps_its_name_and_value() -> None:
    class Scaled(Fc):
        def __init__(self) -> None:
            super().__init__()
            self.fc.register_buffer("weight_scale", torch.tensor(7.0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x) * self.fc.weight_scale
            return out

    net = trained(seeded(Scaled), "Q8(w,f)", rows())
    gm = after([RemoveDisabled(), Freeze()], net)
    assert "%fc_weight_scale_constant = fc.weight_scale_constant" in render(gm)
    assert torch.equal(gm(rows()), net(rows()))


def test_parameters_of_the_model_itself() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight)

    net = trained(seeded(Root), "P0.5(w) -> Q8(w,f)", rows())
    gm = after([RemoveDisabled(), Freeze()], net)
    assert "%weight_integers = weight_integers" in render(gm)
    assert torch.equal(gm(rows()), net(rows()))


def test_leaves_alone_a_net_without_pruners_and_quantizers() -> None:
    net = trained(seeded(Fc), [Quantize(target="weight", bits=8)], rows())
    net.get_submodule("compression.fc.weight_quantizer").enabled.fill_(False)
    check_unchanged(after([RemoveDisabled()], net), Freeze(), FLOAT)


def test_refuses_training_mode() -> None:
    gm = evaluation_copy(trained(seeded(Fc), INPUT_AND_WEIGHTS, rows())).train()
    with pytest.raises(PassError, match=r"'freeze' failed .* the net is in training mode; freeze a copy"):
        run(gm, [Freeze()])


def test_refuses_a_result_with_a_quantizer_left() -> None:
    gm = evaluation_copy(trained(seeded(Fc), INPUT_AND_WEIGHTS, rows()))
    with pytest.raises(PassError, match=r"'compression\.x_quantizer' is still a module"):
        Freeze().ensures(gm)
