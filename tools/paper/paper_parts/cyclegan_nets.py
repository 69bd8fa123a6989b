"""The generator of CycleGAN (arXiv 1703.10593)."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions on a mirrored border with instance norm, and what they add to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pad1, self.conv1, self.norm1 = nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)
        self.relu = nn.ReLU()
        self.pad2, self.conv2, self.norm2 = nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] to the same."""
        y = self.relu(self.norm1(self.conv1(self.pad1(x))))
        return x + self.norm2(self.conv2(self.pad2(y)))  # type: ignore[no-any-return]


class ResNetGenerator(nn.Module):
    """Two halvings, residual blocks, two doublings."""

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.pad, self.first = nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7)
        self.start = nn.Sequential(nn.InstanceNorm2d(width), nn.ReLU())
        self.downs = nn.Sequential(*(_down(width * f) for f in (1, 2)))
        self.blocks = nn.Sequential(*(Block(4 * width) for _ in range(blocks)))
        self.ups = nn.Sequential(*(_up(width * f) for f in (2, 1)))
        self.end, self.last, self.tanh = nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in -1..1 to the same; sides divisible by 4."""
        y = self.ups(self.blocks(self.downs(self.start(self.first(self.pad(x))))))
        return self.tanh(self.last(self.end(y)))  # type: ignore[no-any-return]


def _down(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU())


def _up(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(width), nn.ReLU()
    )
