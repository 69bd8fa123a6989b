"""Linear layers on more than two axes are computed on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Fc, Mlp, Shared, after, check_pass, check_unchanged, rows, seeded, trained
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import PassError
from fxcompress.passes import FlattenProducts, FoldBatchNorm, Freeze, QuantizeBias, RemoveDisabled
from fxcompress.pipeline import Pass, run
from fxcompress.render import render

FROZEN: list[Pass] = [RemoveDisabled(), Freeze(), FoldBatchNorm(), QuantizeBias()]
BEFORE = """
    input %x
    %compression_x_quantizer_constants_scale = compression.x_quantizer_constants.scale
    %compression_x_quantizer_constants_zero_point = compression.x_quantizer_constants.zero_point
    %x_quantizer = quantize_dequantize(%x, %compression_x_quantizer_constants_scale, %compression_x_quantizer_constants_zero_point, 0, 255)
    %fc_weight_integers = fc.weight_integers
    %fc_weight_scale = fc.weight_scale
    %fc_weight_zero_point = fc.weight_zero_point
    %fc_weight_quantizer = dequantize(%fc_weight_integers, %fc_weight_scale, %fc_weight_zero_point, 0)
    %fc_bias = fc.bias
    %fc_bias_integers = fc.bias_integers
    %fc_bias_scale = fc.bias_scale
    %fc_bias_1 = dequantize(%fc_bias_integers, %fc_bias_scale, None, 0)
    %fc = linear(%x_quantizer, %fc_weight_quantizer, %fc_bias_1)
    %compression_fc_quantizer_constants_scale = compression.fc_quantizer_constants.scale
    %compression_fc_quantizer_constants_zero_point = compression.fc_quantizer_constants.zero_point
    %fc_quantizer = quantize_dequantize(%fc, %compression_fc_quantizer_constants_scale, %compression_fc_quantizer_constants_zero_point, 0, 255)
    output %fc_quantizer
"""
AFTER = BEFORE.replace(
    "%fc = linear(%x_quantizer, ",
    """%fc_size = .size(%x_quantizer, 1)
    %fc_flat = flatten(%x_quantizer, 0, -2)
    %fc = linear(%fc_flat, """,
).replace(
    "output %fc_quantizer",
    """%fc_unflat = reshape(%fc_quantizer, (-1, %fc_size, 2))
    output %fc_unflat""",
)


def words(count: int = 2) -> Tensor:
    """Rows on three axes."""
    return torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(1))


class TimeFirst(nn.Module):
    """A linear layer behind a transposition that puts the batch on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.transpose(0, 1))
        return out


def test_flattens_the_input_and_gives_the_output_its_axes_back() -> None:
    gm = after(FROZEN, trained(seeded(Fc), "Q8(w,f)", words()))
    check_pass(gm, FlattenProducts(), before=BEFORE, after=AFTER, example=words(), tolerance=1e-6)


def test_axes_stay_flat_from_layer_to_layer() -> None:
    gm = after(FROZEN, trained(seeded(Mlp), "Q8(w,f)", words()))
    assert run(gm, [FlattenProducts()])
    assert render(gm).count("= flatten(") == render(gm).count("= reshape(") == 1


def test_a_layer_that_others_read_too_keeps_its_axes_for_them() -> None:
    gm = after(FROZEN, trained(seeded(Shared), "Q8(w,f)", words()))
    expected = gm(words())
    assert run(gm, [FlattenProducts()])
    torch.testing.assert_close(gm(words()), expected)


@pytest.mark.parametrize("spec", ["Q8(w,f)", "Q8(w)"])
@pytest.mark.parametrize("model", [Mlp, TimeFirst])
def test_every_axis_may_be_the_batch(model: type[nn.Module], spec: str, tmp_path: Path) -> None:
    net = trained(seeded(model), spec, words())
    found = fxc.export_onnx(net, tmp_path / "net.onnx", words())
    assert found.ok, str(found)
    assert fxc.verify(net, tmp_path / "net.onnx", words(7)).ok
    if "f" in spec:
        assert found.float_operators == ()


def test_leaves_alone_float_weights_and_two_axes() -> None:
    for gm in (
        after(FROZEN, trained(seeded(Fc), "Q8(f)", words())),
        after(FROZEN, trained(seeded(Fc), "Q8(w,f)", rows())),
    ):
        check_unchanged(gm, FlattenProducts(), render(gm))


def test_refuses_a_result_with_more_axes() -> None:
    gm = after(FROZEN, trained(seeded(Fc), "Q8(w,f)", words()))
    with pytest.raises(PassError, match="linear layer 'fc' has 3 axes"):
        FlattenProducts().ensures(gm)
