"""CIFAR-10: as JPEG in one file, or torchvision's, downloaded where it is not there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Labelled = tuple[Tensor, Tensor]
"""Images [N, 3, 32, 32], of mean 0 and deviation 1 as a whole, and classes [N]."""


def load_cifar(root: Path, train: int, test: int) -> tuple[Labelled, Labelled]:
    """The first so many training and test images."""
    file = root / "cifar10/cifar10_jpeg.npz"
    return (
        (_jpeg(file, "train", train), _jpeg(file, "test", test)) if file.exists() else _torchvision(root, train, test)
    )


def _jpeg(file: Path, part: str, count: int) -> Labelled:
    with np.load(file) as stored:
        raw, offsets = stored[f"{part}_jpeg"].tobytes(), stored[f"{part}_offsets"]
        labels = stored[f"{part}_labels"].astype(np.int64)[:count]
    images = [np.array(Image.open(io.BytesIO(raw[offsets[i] : offsets[i + 1]]))) for i in range(len(labels))]
    return _scaled(np.stack(images)), torch.from_numpy(labels)


def _torchvision(root: Path, train: int, test: int) -> tuple[Labelled, Labelled]:
    from torchvision.datasets import CIFAR10

    parts = [(CIFAR10(root, is_train, download=True), n) for is_train, n in ((True, train), (False, test))]
    first, second = ((_scaled(part.data[:n]), torch.tensor(part.targets[:n])) for part, n in parts)
    return first, second


def _scaled(images: np.ndarray) -> Tensor:
    return ((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25).contiguous()
