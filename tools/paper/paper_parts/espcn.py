"""Super-resolution by sub-pixel convolution (arXiv 1609.05158), of the luminance."""

from __future__ import annotations

from torch import Tensor, nn


class Espcn(nn.Module):
    """Three convolutions and a pixel shuffle; ReLU between, no function behind the last."""

    def __init__(self, scale: int = 3) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 64, 5, padding=2), nn.Conv2d(64, 32, 3, padding=1)
        self.conv3, self.shuffle = nn.Conv2d(32, scale**2, 3, padding=1), nn.PixelShuffle(scale)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, H, W] in 0..1 to [N, 1, scale H, scale W]."""
        return self.shuffle(self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x))))))  # type: ignore[no-any-return]
