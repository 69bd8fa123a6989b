"""Generator and discriminator of Pix2Pix (arXiv 1611.07004)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

DEEPEST = 8
"""Times the narrowest layers are as wide as the first."""


class Down(nn.Module):
    """Half the size: LeakyReLU, convolution, batch norm, without the first two or the last at the ends."""

    def __init__(self, inputs: int, outputs: int, *, first: bool = False, last: bool = False) -> None:
        super().__init__()
        self.act = nn.Identity() if first else nn.LeakyReLU(0.2)
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=first or last)
        self.norm = nn.Identity() if first or last else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / 2, W / 2]."""
        return self.norm(self.conv(self.act(x)))  # type: ignore[no-any-return]


class Up(nn.Module):
    """Twice the size: ReLU, transposed convolution, batch norm, dropout in the inner ones."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        self.norm, self.dropout = nn.BatchNorm2d(outputs), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, 2 H, 2 W]."""
        return self.dropout(self.norm(self.conv(self.act(x))))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """`depth` halvings, to one place for images of 2 ** depth pixels, and as many doublings, joined level by level."""

    def __init__(self, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        widths = [min(width * 2**i, DEEPEST * width) for i in range(depth)]
        self.first = Down(3, widths[0], first=True)
        self.downs = nn.ModuleList(Down(a, b, last=i == depth - 2) for i, (a, b) in enumerate(pairwise(widths)))
        ups = list(pairwise(widths))[::-1]
        self.ups = nn.ModuleList(
            Up(b if i == 0 else 2 * b, a, 0.5 if 0 < i < depth - 4 else 0.0) for i, (a, b) in enumerate(ups)
        )
        self.act, self.last, self.tanh = nn.ReLU(), nn.ConvTranspose2d(2 * widths[0], 3, 4, 2, 1), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in -1..1 to the same."""
        levels = [self.first(x)]
        for down in self.downs:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for up in self.ups:
            y = torch.cat([levels.pop(), up(y)], 1)
        return self.tanh(self.last(self.act(y)))  # type: ignore[no-any-return]


def patch_discriminator(inputs: int, width: int = 64, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """Logits for overlapping patches of 70 pixels, [N, inputs, H, W] to [N, 1, about H / 8, about W / 8]."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i, stride in enumerate((2, 2, 1)):
        layers += [nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 4, stride, 1), norm(width * 2 ** (i + 1))]
        layers += [nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


def start_normal(net: nn.Module) -> nn.Module:
    """Weights of mean 0 and deviation 0.02, as both papers begin."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return net
