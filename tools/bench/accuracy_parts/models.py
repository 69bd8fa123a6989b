"""The two networks, written so that published weights load by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = {
    "resnet20": "weights/cifar_resnet/resnet20-12fca82f.th",
    "resnet56": "weights/cifar_resnet/resnet56-4bfd9763.th",
    "efficientnet_lite0": "weights/efficientnet_lite0/efficientnet-lite0-57934424.pth",
}
EDGES = {"resnet20": ("conv1", "linear"), "efficientnet_lite0": ("_conv_stem", "_fc")}
"""First and last layer, which stay at 8 bits where the rest has 4."""

# kernel, stride, expansion, inputs, outputs, repeats
_LITE0 = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: every other pixel, new channels zero."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return self.relu2(y + x)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images (arXiv 1512.03385, section 4.2): 6 n + 2 layers with n blocks in each of three groups."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), *(BasicBlock(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), *(BasicBlock(64, 64, 1) for _ in range(blocks - 1)))
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.linear(self.pool(x).flatten(1))


def _same_pad(kernel: int, stride: int) -> nn.Module:
    """Zeros around an image of even size so that a convolution yields size / stride, the odd one last."""
    total = kernel - stride
    before = total // 2
    return nn.ZeroPad2d((before, total - before, before, total - before))


class MBConv(nn.Module):
    """Expand, convolve each channel, project, with ReLU6 and without squeeze-and-excitation."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0, self.relu0 = nn.BatchNorm2d(wide, 1e-3, 0.01), nn.ReLU6()
        same = stride == 1
        self.pad = nn.Identity() if same else _same_pad(kernel, stride)
        self._depthwise_conv = nn.Conv2d(
            wide, wide, kernel, stride, kernel // 2 if same else 0, groups=wide, bias=False
        )
        self._bn1, self.relu1 = nn.BatchNorm2d(wide, 1e-3, 0.01), nn.ReLU6()
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, 1e-3, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        y = self.relu0(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self.relu1(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for 224x224 images: EfficientNet-B0 (arXiv 1905.11946) with ReLU6 and no excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self._conv_stem = _same_pad(3, 2), nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0, self.relu0 = nn.BatchNorm2d(32, 1e-3, 0.01), nn.ReLU6()
        self._blocks = nn.Sequential(
            *(
                MBConv(kernel, stride if i == 0 else 1, expansion, inputs if i == 0 else outputs, outputs)
                for kernel, stride, expansion, inputs, outputs, repeats in _LITE0
                for i in range(repeats)
            )
        )
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1, self.relu1 = nn.BatchNorm2d(1280, 1e-3, 0.01), nn.ReLU6()
        self.pool, self.dropout, self._fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self._blocks(self.relu0(self._bn0(self._conv_stem(self.pad(x)))))
        x = self.relu1(self._bn1(self._conv_head(x)))
        return self._fc(self.dropout(self.pool(x).flatten(1)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: CifarResNet(3),
    "resnet56": lambda: CifarResNet(9),
    "efficientnet_lite0": EfficientNetLite0,
}


def load_model(name: str, root: Path) -> nn.Module:
    """The network with its published weights, in evaluation mode."""
    model: nn.Module = MODELS[name]()
    state = torch.load(root / WEIGHTS[name], map_location="cpu", weights_only=True)
    state = {key.removeprefix("module."): value for key, value in state.get("state_dict", state).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [key for key in missing if not key.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise ValueError(f"the weights of {name} do not fit: {', '.join(wrong)}")
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
