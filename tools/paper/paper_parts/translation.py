"""What both tasks of image translation share: pictures as tensors, and FID of what is made."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paper_parts.fid import FileFeatures, Moments, frechet_distance
from paper_parts.images import read_image
from paper_parts.task import Setting

FID = "FID"


def read_folder(folder: Path, count: int | None = None) -> Tensor:
    """All pictures of a folder, or the first so many, [N, 3, H, W] in -1..1. Raises ValueError if there is none."""
    files = sorted(folder.glob("*.jpg"))[:count]
    if not files:
        raise ValueError(f"there are no .jpg files in '{folder}'; name the folder of the data with --data-root")
    return torch.stack([read_image(file) for file in files]) / 127.5 - 1


def resized(images: Tensor, size: int) -> Tensor:
    """Squares of `size` pixels."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def features_of(setting: Setting) -> tuple[nn.Module, str]:
    """The feature network, and which one it is. Raises ValueError where real data have none."""
    if setting.features is not None:
        return FileFeatures(setting.features), f"FID is by the features of {setting.features.name}"
    if setting.root is not None:
        raise ValueError("FID needs a feature network; name an ONNX file with --features (tools/paper/features.py)")
    return Moments(), "FID is by moments of color"


def distance(features: nn.Module, real: Tensor, made: list[Tensor]) -> float:
    """FID of images in -1..1."""
    return frechet_distance(features, (real + 1) / 2, (torch.cat(made).clamp(-1, 1) + 1) / 2)


def linear_decay(share: float) -> float:
    """Constant for two thirds of training, then down to zero in a line."""
    return min(1.0, 3 * (1 - share))


def trains(net: nn.Module, wanted: bool) -> None:
    """Whether gradients reach the parameters of a network."""
    for parameter in net.parameters():
        parameter.requires_grad_(wanted)
