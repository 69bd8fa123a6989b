"""Shrinking torchvision's families: same outputs in float, same integers in the frozen graph, trains on, exports."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree
from torchvision.models.detection import backbone_utils

import fxcompress as fxc
from fxcompress.labels import Labelled
from fxcompress.qdq import QUANTIZE_DEQUANTIZE
from fxcompress.shrinking import removable

CHANNELS = {"op": "prune", "target": "weight", "sparsity": 0.5, "pattern": "channel", "start": 1, "ramp": "one-shot"}
INT8 = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 2}
SAMPLE = ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"]
CLASSIFICATION = [
    "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mnasnet0_5",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny",
    "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t",
]  # fmt: skip
SEGMENTATION = ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"]
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet18 with pyramid": lambda: backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None),
    "mobilenet_v3 with pyramid": lambda: backbone_utils.mobilenet_backbone(
        "mobilenet_v3_large", weights=None, fpn=True
    ),
    "SSD's VGG": lambda: torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None).backbone,
}
SIZES = {"SSD's VGG": 300, "inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*CLASSIFICATION, *SEGMENTATION, *BACKBONES)]


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, none of them zero, and a batch for it."""
    torch.manual_seed(0)
    if name in BACKBONES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision warns about its own call
            model = BACKBONES[name]()
    else:
        more: dict[str, Any] = {"weights_backbone": None} if name in SEGMENTATION else {"num_classes": 10}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two old models warn about their initialization
            model = torchvision.models.get_model(name, weights=None, **more)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.02)
    size = SIZES.get(name, 64)
    return model, torch.randn(2, 3, size, size)


def trained(model: nn.Module, rules: list[Any], x: Tensor) -> tuple[Any, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    net = fxc.compress(model.train(), {"rules": rules}, x, total_steps=3, optimizer=optimizer)
    train(net, optimizer, x, 3)
    return net.eval(), optimizer


def train(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([o.square().mean() for o in outputs(net, torch.randn_like(x))]).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


def outputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    return [o for o in pytree.tree_leaves(net(x)) if isinstance(o, Tensor)]


class Integers(Interpreter):
    """Runs a frozen graph and keeps every quantized tensor by its node's name."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.target is QUANTIZE_DEQUANTIZE:
            self.seen[n.name] = value
        return value


def quantized(net: Any, x: Tensor) -> dict[str, Tensor]:
    run = Integers(fxc.freeze(net))
    run.run(x)
    return run.seen


def kept_by_name(net: Any) -> dict[str, Any]:
    """What `shrink` will leave of each activation, along each axis."""
    gone = removable(net)
    [view] = [net.view(variants[0].graph) for variants in net.evaluation_variants.values()]
    kept = gone.kept_of(view)
    return {n.name: kept[n] for n in view.graph.nodes if isinstance(gone.channels.at.get(n), Labelled)}


@pytest.mark.parametrize("name", [*SAMPLE, *SLOW])
def test_a_masked_net_and_its_shrunk_self_agree(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    net, _ = trained(model, [CHANNELS], x)
    with torch.no_grad():
        expected = outputs(net, x)
        parameters = sum(p.numel() for p in net.parameters())
        fxc.shrink(net)
        assert sum(p.numel() for p in net.parameters()) < 0.85 * parameters
        for before, after in zip(expected, outputs(net, x), strict=True):
            assert float((after - before).abs().max()) <= 1e-5 * float(before.max() - before.min())


@pytest.mark.parametrize("name", [*SAMPLE, *SLOW])
@torch.no_grad()
def test_integers_stay_the_same_and_the_net_trains_on(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    with torch.enable_grad():
        net, optimizer = trained(model, [CHANNELS, INT8], x)
    before, kept = quantized(net, x), kept_by_name(net)
    fxc.shrink(net)
    after = quantized(net, x)
    assert set(after) == set(before)
    for tensor, value in after.items():
        if tensor.endswith("_gate"):
            continue  # made by freezing, from tensors that are compared
        left = before[tensor]
        for axis, stay in enumerate(kept.get(tensor, ())):
            left = left if stay is None else left.index_select(axis, stay.nonzero().flatten())
        assert torch.equal(value, left), tensor
    with torch.enable_grad():
        train(net.train(), optimizer, x, 10)
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx", x)
    assert found.ok, str(found)
