"""Contract 8 on torchvision's families: the runtime agrees, and nothing that has an integer kernel is left in float."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from models import train

import fxcompress as fxc

SAMPLE = ["resnet18", "mobilenet_v2"]
OTHERS = [
    "mobilenet_v3_small", "densenet121", "efficientnet_b0", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_0",
    "regnet_y_400mf", "mnasnet0_5", "convnext_tiny",
]  # fmt: skip


@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_a_whole_schedule_ends_in_integers_that_agree(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    shape = (2, 3, 64, 64)
    net = fxc.compress(model, "P0.5(w,f) -> Q8(w,f)", torch.randn(shape), total_steps=10)
    train(net, 10, shape, lr=1e-3)
    found = fxc.export_onnx(net, tmp_path / "net.onnx", torch.randn(shape))
    assert found.ok, str(found)
    assert found.float_operators == ()
