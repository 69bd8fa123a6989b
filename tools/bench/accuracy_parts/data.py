"""Images of the two tasks, split once for all methods: calibration, training, choosing settings, testing."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Images as uint8 [N, 3, H, W]; no image is in two parts, but calibration takes from the training part.

    `labels` of a part are classes, -1 where unknown. `classes`, if given, are the only ones that a labelled image can
    have, and the answer is the likeliest of them.
    """

    name: str
    mean: Tensor
    std: Tensor
    calibration: Tensor
    train: tuple[Tensor, Tensor]
    select: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[int, ...] | None = None

    def float(self, images: Tensor) -> Tensor:
        """Images as the network takes them."""
        return ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def load_task(model: str, root: Path) -> Task:
    """The images for a model of `models.py`."""
    return _cifar(root / "cifar10") if model == "resnet20" else _photos(root)


def _cifar(folder: Path) -> Task:
    stored = np.load(folder / "cifar10_jpeg.npz")

    def part(name: str, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        raw, offsets = stored[f"{name}_jpeg"].tobytes(), stored[f"{name}_offsets"]
        images = [np.array(Image.open(io.BytesIO(raw[offsets[i] : offsets[i + 1]]))) for i in chosen]
        return _channels_first(images), torch.from_numpy(stored[f"{name}_labels"].astype(np.int64)[chosen])

    order = np.random.default_rng(0).permutation(50_000)
    train = part("train", order[:45_000])
    scale = 255 * torch.ones(3, 1, 1)
    return Task(
        "CIFAR-10, JPEG",
        scale * torch.tensor([0.485, 0.456, 0.406])[:, None, None],
        scale * torch.tensor([0.229, 0.224, 0.225])[:, None, None],
        train[0][:512],
        train,
        part("train", order[45_000:]),
        part("test", np.arange(10_000)),
    )


def _photos(root: Path) -> Task:
    horses, bccd = root / "horse2zebra", root / "bccd/BCCD"
    listed = {name: (bccd / f"ImageSets/Main/{name}.txt").read_text().split() for name in ("trainval", "test")}
    cells = {name: [bccd / f"JPEGImages/{stem}.jpg" for stem in stems] for name, stems in listed.items()}
    pool = [(file, -1) for file in sorted((root / "t91").glob("*.png")) + cells["trainval"]]
    pool += [(file, -1) for file in sorted((root / "facades/train").glob("*.jpg"))]
    pool += [(file, SORREL) for file in sorted((horses / "trainA").glob("*.jpg"))]
    pool += [(file, ZEBRA) for file in sorted((horses / "trainB").glob("*.jpg"))]
    test = [(file, -1) for file in sorted((root / "set5").glob("*.png")) + cells["test"]]
    test += [(file, -1) for file in sorted((root / "facades/test").glob("*.jpg"))]
    test += [(file, SORREL) for file in sorted((horses / "testA").glob("*.jpg"))]
    test += [(file, ZEBRA) for file in sorted((horses / "testB").glob("*.jpg"))]
    images, labels = _read(pool)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pool)))
    train, select = order[: -len(order) // 5], order[-len(order) // 5 :]
    middle = torch.full((3, 1, 1), 127.0)
    return Task(
        "photographs",
        middle,
        middle + 1,
        images[train[:128]],
        (images[train], labels[train]),
        (images[select], labels[select]),
        _read(test),
        (SORREL, ZEBRA),
    )


SORREL, ZEBRA = 339, 340
"""Of ImageNet's classes; the horses of the set are near enough to the first to tell them from the second."""


def _read(files: list[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    return _channels_first([_square(file) for file, _ in files]), torch.tensor([label for _, label in files])


def _square(file: Path) -> np.ndarray:
    """The middle of an image at 224 pixels; of facades the photograph, which is the left half."""
    image = Image.open(file).convert("RGB")
    if file.parent.parent.name == "facades":
        image = image.crop((0, 0, image.width // 2, image.height))
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.array(image.crop((left, top, left + 224, top + 224)))


def _channels_first(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
