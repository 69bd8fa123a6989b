"""The whole way of one model: compress, train through the schedule, export, verify."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fxc
from zoo_parts.measure import SPEC, call

STEPS = 5
MODELS = (
    "torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small", "torchvision/googlenet",
    "torchvision/densenet121", "torchvision/efficientnet_b0", "torchvision/shufflenet_v2_x0_5", "torchvision/r3d_18",
    "torchvision/lraspp_mobilenet_v3_large", "torchvision/vit_b_32", "torchvision/swin_t", "torchvision/convnext_tiny",
    "timm/levit", "timm/mlp_mixer", "timm/repvit", "timm/edgenext", "transformers/bert", "transformers/distilbert",
    "transformers/gpt2", "transformers/llama", "transformers/t5", "transformers/vit",
)  # fmt: skip


@dataclass
class Cycle:
    """What came of one model: `ok` is the verification's answer, `error` why it did not come that far."""

    name: str
    ok: bool = False
    tensors: int = 0
    integer_operators: int = 0
    float_operators: int = 0
    error: str = ""

    def line(self) -> str:
        """The row as one line of Markdown."""
        said = self.error or ("agrees" if self.ok else "**disagrees**")
        return f"| {self.name} | {said} | {self.tensors} | {self.integer_operators} | {self.float_operators} |"

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def run_cycle(row: Cycle, model: nn.Module, inputs: Any) -> None:
    """Fill `row` with what comes of `model` after five steps through the schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    net = fxc.compress(model.train(), SPEC, inputs, total_steps=STEPS, optimizer=optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = [t for t in pytree.tree_leaves(call(net, inputs)) if isinstance(t, Tensor) and t.requires_grad]
        torch.stack([t.float().square().mean() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        found = fxc.export_onnx(net.eval(), Path(folder) / "net.onnx", inputs)
    row.ok, row.tensors = found.ok, len(found.tensors)
    row.integer_operators, row.float_operators = sum(found.integer_operators.values()), len(found.float_operators)
