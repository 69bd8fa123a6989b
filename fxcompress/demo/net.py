"""The demo's model, as anyone would write it: batch norm, residual additions and a concatenation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class TwoScales(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.wide = nn.Sequential(nn.Conv2d(inputs, half, 3, padding=1, bias=False), nn.BatchNorm2d(half))
        self.narrow = nn.Sequential(nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        return torch.relu(torch.cat([self.wide(x), self.narrow(x)], dim=1))


class DigitsNet(nn.Module):
    """A residual network that sorts 8x8 grey images into ten classes."""

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.block3 = ResidualBlock(2 * width, 4 * width, stride=2)
        self.scales = TwoScales(4 * width, 4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 1, 8, 8] in 0..1 to [N, classes] logits."""
        x = self.block3(self.block2(self.block1(self.stem(images))))
        x = self.pool(self.scales(x))
        return self.classify(torch.flatten(x, 1))  # type: ignore[no-any-return]
