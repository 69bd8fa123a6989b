"""Pixels: files to tensors and back, luminance, PSNR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_image(file: Path) -> Tensor:
    """[3, H, W] in 0..255."""
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float()


def luminance(rgb: Tensor) -> Tensor:
    """Y of YCbCr (BT.601, 16 to 235 of 255) in 0..1, [1, H, W], from [3, H, W] in 0..255."""
    weights = torch.tensor([65.481, 128.553, 24.966])
    return ((rgb.permute(1, 2, 0) @ weights / 255 + 16) / 255)[None]


def psnr(found: Tensor, wanted: Tensor, border: int) -> float:
    """In dB of values in 0..1, without a border of so many pixels, as is usual."""
    error = (found.clamp(0, 1) - wanted)[..., border:-border, border:-border].square().mean()
    return float(-10 * torch.log10(error))


def side_by_side(images: Sequence[Tensor]) -> Image.Image:
    """One picture of images of one size, [1 or 3, H, W] in 0..1."""
    row = torch.cat([x.expand(3, -1, -1) for x in images], 2).clamp(0, 1)
    return Image.fromarray((255 * row).round().byte().permute(1, 2, 0).numpy())


def made_up(count: int, size: int, channels: int = 3) -> Tensor:
    """Smooth images where there are no data: [count, channels, size, size] in 0..1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
