"""Detection data in Pascal VOC form: BCCD as it lies, or torchvision's VOC, downloaded where it is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from paper_parts.images import made_up, read_image

VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BCCD = ("RBC", "WBC", "Platelets")


@dataclass(frozen=True)
class Scene:
    """An image [3, H, W] in 0..1, boxes [B, 4] as left, top, right, bottom in pixels, and classes [B] from 1 on."""

    image: Tensor
    boxes: Tensor
    classes: Tensor

    def target(self) -> dict[str, Tensor]:
        """As torchvision's detectors take it."""
        return {"boxes": self.boxes, "labels": self.classes}


def load_scenes(root: Path, parts: Sequence[str]) -> tuple[list[list[Scene]], tuple[str, ...]]:
    """The scenes of each part, such as "train", and the names of the classes."""
    folder, classes = root / "bccd" / "BCCD", BCCD
    if not folder.exists():
        from torchvision.datasets import VOCDetection

        VOCDetection(root, year="2007", image_set="trainval", download=True)
        VOCDetection(root, year="2007", image_set="test", download=True)
        folder, classes = root / "VOCdevkit" / "VOC2007", VOC
    return [_part(folder, part, classes) for part in parts], classes


def made_up_scenes(count: int = 4) -> list[Scene]:
    """Bright squares on smooth images."""
    scenes = []
    for i, image in enumerate(0.5 * made_up(count, 96)):
        box = torch.tensor([[8.0 + 6 * i, 16.0, 40.0 + 6 * i, 48.0]])
        image[:, 16:48, 8 + 6 * i : 40 + 6 * i] += 0.5
        scenes.append(Scene(image, box, torch.ones(1, dtype=torch.int64)))
    return scenes


def _part(folder: Path, part: str, classes: tuple[str, ...]) -> list[Scene]:
    names = (folder / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
    scenes = []
    for name in names:
        image = read_image(folder / "JPEGImages" / f"{name}.jpg") / 255
        boxes, found = _boxes(folder / "Annotations" / f"{name}.xml", image, classes)
        scenes.append(Scene(image, boxes, found))
    return scenes


def _boxes(file: Path, image: Tensor, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Those that are inside of the image, and hold something."""
    height, width = image.shape[1:]
    boxes, found = [], []
    for item in ElementTree.parse(file).getroot().iter("object"):
        edges = {e: float(item.findtext(f"bndbox/{e}", "0")) for e in ("xmin", "ymin", "xmax", "ymax")}
        left, right = max(edges["xmin"], 0.0), min(edges["xmax"], float(width))
        top, bottom = max(edges["ymin"], 0.0), min(edges["ymax"], float(height))
        if left < right and top < bottom:
            boxes.append([left, top, right, bottom])
            found.append(1 + classes.index(item.findtext("name", "")))
    return torch.tensor(boxes).view(-1, 4), torch.tensor(found, dtype=torch.int64)
