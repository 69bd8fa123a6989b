"""The report: what stands where, what it costs, and why something is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import ConvBnConv, image, seeded, trained
from models import Residual, train
from torch import Tensor, nn

import fxcompress as fxc

SHAPE = (4, 3, 8, 8)


@pytest.fixture
def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    net = fxc.compress(Residual(), "P0.5(w,f) -> Q8(w,f)", torch.randn(SHAPE), total_steps=10)
    train(net, 10, SHAPE)
    found = fxc.report(net)
    assert "weights: 5 of 5 rewritten" in capsys.readouterr().out
    return {row.name: row for row in found.rows}


def test_macs_bops_and_bytes_by_hand(rows: dict[str, fxc.report.Row]) -> None:  # type: ignore[name-defined]
    stem, depthwise = rows["stem.weight"], rows["depthwise.weight"]
    assert (stem.kind, stem.bits, stem.sparsity, stem.bytes) == ("weight", 8, 0.5, 8 * 3 * 9)
    assert stem.macs == 8 * 64 * 27
    assert depthwise.macs == 8 * 64 * 9
    assert stem.bops == pytest.approx(8 * 64 * 27 * (0.5 * 64 + 16 + math.log2(27)))
    assert rows["relu"].bytes == 8 * 64
    assert (rows["x"].sparsity, rows["relu"].sparsity) == (0, 0.5)


def test_before_any_event_everything_is_float() -> None:
    net = fxc.compress(Residual(), "P0.5(w) -> Q8(w)", torch.randn(SHAPE), total_steps=10)
    found = fxc.report(net)
    assert {r.bits for r in found.rows} == {32}
    assert {r.sparsity for r in found.rows} == {0}
    assert {r.reason for r in found.rows if r.kind == "activation"} == {"no rule selects it"}


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bag(x)[None]
        return self.fc(self.attention(x, x, x)[0])


def test_weights_no_pass_reaches_are_listed_with_the_reason() -> None:
    net = fxc.compress(Attends(), "Q8(w)", torch.randint(6, (5, 4)), total_steps=10)
    weights = [r for r in fxc.report(net).rows if r.kind == "weight"]
    assert {r.name: r.reason for r in weights if not r.rewritten} == {
        "bag.weight": "no pass rewrites this weight of EmbeddingBag"
    }
    assert {r.name for r in weights if r.rewritten} == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "fc.weight",
    }


def test_macs_of_one_sample_where_the_batch_is_another_axis() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = fxc.compress(layer, "Q8(w)", torch.randn(3, 5, 8), total_steps=10)
    assert {r.name: r.macs for r in fxc.report(net).rows if r.kind == "weight"} == {
        "self_attn.in_proj_weight": 5 * 24 * 8,
        "self_attn.out_proj.weight": 5 * 8 * 8,
        "linear1.weight": 5 * 16 * 8,
        "linear2.weight": 5 * 8 * 16,
    }


def test_performance_density_counts_what_is_left() -> None:
    net = fxc.compress(Residual(), "P0.5(w)@1..1 -> Q8(w)@1", torch.randn(SHAPE), total_steps=2)
    dense = fxc.report(net).megabits()
    net.schedule.step()
    small = fxc.report(net)
    assert small.megabits() < dense
    assert small.performance_density(90.0) == pytest.approx(90.0 / small.megabits())


def test_channels_that_go_and_channels_that_stay_are_told() -> None:
    rule = {"op": "prune", "target": "weight", "sparsity": 0.5, "pattern": "channel", "ramp": "one-shot"}
    net = trained(seeded(ConvBnConv), {"rules": [rule]}, image())
    found = fxc.report(net)
    rows = {r.name: r for r in found.rows}
    assert rows["conv.weight"].sparsity == 0.5 and rows["conv.weight"].sparse_bytes == 6 * 4 + 12 / 8
    assert (
        rows["last.weight"].reason == "its channels stay: they are outputs of the model, or what reads them mixes them"
    )
    assert "shrink would remove dead channels of 1 weights, and with them 14 of 30 parameters" in str(found)
    fxc.shrink(net)
    assert "shrink would" not in str(fxc.report(net))
