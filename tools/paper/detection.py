#!/usr/bin/env python3
"""Faster R-CNN on boxes in VOC form: tools/paper/detection.py --data-root DATA --work WORK.

What is compressed, and deployed: the backbone, the head that proposes regions and the one that looks at each. Anchors,
non-maximum suppression and the cutting out of regions stay outside of the files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from paper_parts.detector import full_detector, small_detector
from paper_parts.runner import run
from paper_parts.task import Parts, Run, Setting, Task
from paper_parts.voc import Scene, load_scenes, made_up_scenes
from torch import nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN

SIZES = {"smoke": (64, 72), "cpu": (160, 192, 208, 224), "full": (480, 512, 544, 576, 600)}
EPOCHS = {"smoke": 2, "cpu": 9, "full": 9}
TRAIN = {"smoke": "train", "cpu": "train", "full": "trainval"}
PLACES = {"backbone": "backbone", "rpn_head": "rpn.head", "region_head": "roi_heads.box_head"}


class Detection(Task):
    """Mean average precision at an overlap of a half, as VOC counts it."""

    name, metric, batch = "detection", "mAP at 0.5, %", 4

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device, self.sizes = setting, setting.device, SIZES[setting.budget]
        if setting.root is None:
            self.train = self.test = made_up_scenes()
            self.classes = 2
        else:
            (self.train, self.test), names = load_scenes(setting.root, (TRAIN[setting.budget], "test"))
            self.classes = 1 + len(names)
        self.epochs, self.steps_per_epoch = EPOCHS[setting.budget], -(-len(self.train) // self.batch)
        self.differs = (
            f"BCCD, {len(self.train)} training and {len(self.test)} test images of three kinds of blood cells, short "
            f"side {self.sizes[0]} to {self.sizes[-1]} pixels (published: VOC 2007 and 2012, 600)",
            "EfficientNet-Lite0 up to a sixteenth of the size, ImageNet weights (published: ResNet-101); batches of 4",
        )

    def build(self) -> Parts:
        """The detector, taken apart where files will be cut, and SGD."""
        if self.setting.budget == "full":
            detector = full_detector(self.classes, "IMAGENET1K_V2")
        else:
            detector = small_detector(self.classes, self.sizes, self.setting.root)
        sgd = torch.optim.SGD(detector.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        nets = {name: detector.get_submodule(place) for name, place in PLACES.items()}
        return Parts(nets, {"detector": detector}, {"sgd": sgd})

    def examples(self) -> dict[str, Any]:
        """A test image as the detector resizes it, and what the heads get of it."""
        seen: dict[str, Any] = {}
        detector = small_detector(self.classes, self.sizes, None).eval()
        if self.setting.budget == "full":
            detector = full_detector(self.classes, None).eval()
        for name, place in PLACES.items():
            detector.get_submodule(place).register_forward_pre_hook(_keeper(seen, name))
        with torch.no_grad():
            detector([self.test[0].image])
        return {name: _moved(seen[name], self.device) for name in PLACES}

    def published_rate(self, share: float) -> float:
        """A tenth behind five epochs of nine."""
        return 1.0 if share < 5 / 9 else 0.1

    def step(self, parts: Parts) -> None:
        """The sum of the four losses of a batch, mirrored at random."""
        chosen = torch.randint(len(self.train), (self.batch,)).tolist()
        scenes = [_mirrored(self.train[i]) if torch.rand(()) < 0.5 else self.train[i] for i in chosen]
        images = [s.image.to(self.device) for s in scenes]
        targets = [{k: v.to(self.device) for k, v in s.target().items()} for s in scenes]
        with _in_place(parts, parts.nets) as detector:
            losses = detector(images, targets)
        sgd = parts.optimizers["sgd"]
        sgd.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_([p for g in sgd.param_groups for p in g["params"]], 5.0)
        sgd.step()

    @torch.no_grad()
    def evaluate(self, parts: Parts, runs: Mapping[str, Run]) -> dict[str, float]:
        """On the test images; `runs` stand in the place of the detector's parts."""
        metric = MeanAveragePrecision(iou_thresholds=[0.5])
        with _in_place(parts, runs) as detector:
            for scene in self.test:
                (found,) = detector([scene.image.to(self.device)])
                metric.update([{k: v.cpu() for k, v in found.items()}], [scene.target()])
        return {self.metric: 100 * float(metric.compute()["map_50"])}


def _keeper(seen: dict[str, Any], name: str) -> Any:
    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[name] = inputs[0]

    return keep


def _moved(x: Any, device: torch.device) -> Any:
    return [y.to(device) for y in x] if isinstance(x, list) else x.to(device)


@contextmanager
def _in_place(parts: Parts, runs: Mapping[str, Run]) -> Iterator[FasterRCNN]:
    """The detector with `runs` in the place of its parts."""
    detector: Any = parts.others["detector"]
    originals = {place: detector.get_submodule(place) for place in PLACES.values()}
    for name, place in PLACES.items():
        _put(detector, place, runs[name])
    try:
        yield detector
    finally:
        for place, module in originals.items():
            _put(detector, place, module)


def _put(detector: nn.Module, place: str, run: Any) -> None:
    above, _, name = place.rpartition(".")
    setattr(detector.get_submodule(above), name, run if isinstance(run, nn.Module) else Called(run))


class Called(nn.Module):
    """A function where a module stood."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Any) -> Any:
        """What the function gives."""
        return self.run(x)


def _mirrored(scene: Scene) -> Scene:
    width = scene.image.shape[2]
    boxes = scene.boxes.clone()
    boxes[:, [0, 2]] = width - scene.boxes[:, [2, 0]]
    return Scene(scene.image.flip(2), boxes, scene.classes)


if __name__ == "__main__":
    sys.exit(run(Detection, str(__doc__)))
