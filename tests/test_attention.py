"""Attention and the layers of transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_follows, copies, rows, twins
from layers import Args, given
from torch import Tensor, nn

import fxcompress as fxc


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.fc = nn.Linear(8, 3)

    def forward(
        self,
        q: Tensor,
        kv: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = True,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        kv = q if kv is None else kv
        y, weights = self.attention(q, kv, kv, key_padding_mask, need_weights, attn_mask, average_attn_weights)
        return self.fc(y), weights


SEQUENCE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
OTHER = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(4))
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
MASKS: dict[str, Args] = {
    "self": given(SEQUENCE),
    "no weights": given(SEQUENCE, need_weights=False),
    "causal": given(SEQUENCE, attn_mask=CAUSAL, need_weights=False),
    "padding": given(SEQUENCE, key_padding_mask=PADDING),
    "padding and causal": given(SEQUENCE, key_padding_mask=PADDING, attn_mask=CAUSAL.isinf()),
    "cross": given(SEQUENCE, OTHER),
    "cross padding": given(SEQUENCE, OTHER, key_padding_mask=PADDING[:, 1:], need_weights=False),
    "each head": given(SEQUENCE, average_attn_weights=False),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("masks", MASKS)
def test_attention(masks: str, dropout: float) -> None:
    args, kwargs = MASKS[masks]
    torch.manual_seed(0)
    example = {**dict(zip(("q", "kv"), args, strict=False)), **kwargs}
    model, net = twins(Attends(dropout=dropout), example)
    assert_follows(model, net, *args, **kwargs)
    for others in (MASKS["self"], MASKS["causal"]):
        assert_follows(model, net, *others[0], **others[1])
    with torch.no_grad():  # the model's own fast path
        expected, found = model.eval()(*args, **kwargs), net.eval()(*args, **kwargs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not net.islands
    assert {"attention.in_proj_weight", "attention.out_proj.weight", "fc.weight"} == {
        r.name for r in fxc.report(net).rows if r.kind == "weight" and r.rewritten
    }


@pytest.mark.parametrize(
    "options", [{"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 6, "vdim": 6}]
)
def test_attention_with_options(options: dict[str, Any]) -> None:
    model = Attends(**options)
    kv = rows(6)[:, None].expand(4, 2, 6).transpose(0, 1) if "kdim" in options else OTHER
    model, net = twins(model, (SEQUENCE, kv))
    assert not net.islands
    assert_follows(model, net, SEQUENCE, kv)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_layers(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first)
    model, net = twins(layer, SEQUENCE)
    assert not net.islands
    for twin in copies(net):
        original = copy.deepcopy(model)
        assert_follows(original, twin, SEQUENCE)
        assert_follows(original, twin, SEQUENCE, CAUSAL, is_causal=True)
        assert_follows(original, twin, OTHER)
        with torch.no_grad():
            torch.testing.assert_close(twin.eval()(SEQUENCE), original.eval()(SEQUENCE), rtol=0, atol=1e-6)
    assert sorted(r.name for r in fxc.report(net).rows if r.kind == "weight" and r.rewritten) == [
        "linear1.weight", "linear2.weight", "self_attn.in_proj_weight", "self_attn.out_proj.weight",
    ]  # fmt: skip


def test_a_padding_mask_is_met_later() -> None:
    torch.manual_seed(0)
    model, net = twins(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), SEQUENCE)
    assert_follows(model, net, SEQUENCE)
    assert_follows(model, net, SEQUENCE, src_key_padding_mask=PADDING)


def test_a_transformer() -> None:
    torch.manual_seed(0)
    model, net = twins(nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (SEQUENCE, OTHER))
    assert not net.islands
    assert_follows(model, net, SEQUENCE, OTHER)
    assert_follows(model, net, SEQUENCE, SEQUENCE, tgt_mask=CAUSAL, tgt_is_causal=True)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(SEQUENCE, OTHER), model.eval()(SEQUENCE, OTHER), rtol=0, atol=1e-6)
