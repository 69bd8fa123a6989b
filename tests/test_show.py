"""tools/show: the graph after every pass."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

TOOL = Path(__file__).parent.parent / "tools" / "show"
MODEL = f"{__name__}:tiny"
INSERTING = [
    "capture", "canonicalize", "prune-weights", "prune-activations", "quantize-weights", "quantize-activations",
    "quantize-gates", "share-scales",
]  # fmt: skip


def tiny() -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    return layers, torch.randn(2, 1, 4, 4)


@pytest.fixture
def main() -> Any:
    return runpy.run_path(str(TOOL), run_name="show")["main"]


def test_prints_the_graph_after_every_pass_in_order(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main([MODEL, "--spec", "P0.5(w,f) -> Q8(w,f)"])
    shown = capsys.readouterr().out
    passes = re.findall(r"=== (\S+)", shown)
    assert passes[: len(INSERTING)] == INSERTING
    assert passes[len(INSERTING) :] == list(dict.fromkeys(passes[len(INSERTING) :]))
    assert {"freeze", "fold-batchnorm", "quantize-bias", "integer-products"} <= set(passes)
    assert passes[-1] == "lower-to-qdq"
    assert "%_4 = linear(%_3, %_4_weight, %_4_bias)" in shown
    assert "_4_weight_pruner = compression.4.weight_pruner:Pruner(" in shown
    assert "integer_linear(" in shown


def test_prints_only_the_passes_asked_for(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main([MODEL, "--only", "capture", "canonicalize"])
    shown = capsys.readouterr().out
    assert re.findall(r"=== (\S+)", shown) == ["capture", "canonicalize"]
    assert "(unchanged)" in shown


def test_refuses_a_pass_that_does_not_exist(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([MODEL, "--only", "fuse"])
    assert "no pass 'fuse'; there are capture, canonicalize" in capsys.readouterr().err


def test_says_what_is_wrong_with_a_spec(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([MODEL, "--spec", "P2(w)"])
    assert "'sparsity' is 2" in capsys.readouterr().err
