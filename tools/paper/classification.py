#!/usr/bin/env python3
"""MobileNetV2 on CIFAR-10: tools/paper/classification.py --data-root DATA --work WORK [--seed 0 1 2]."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from paper_parts.cifar import load_cifar
from paper_parts.images import made_up
from paper_parts.runner import run
from paper_parts.task import Descent, Parts, Run, Setting
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

IMAGES = {"smoke": 256, "cpu": 10_000, "gpu": 50_000, "full": 50_000}
EPOCHS = {"smoke": 2, "cpu": 10, "gpu": 2, "full": 250}
WIDTH = {"smoke": 0.35, "cpu": 0.35, "gpu": 1.0, "full": 1.0}
STRIDE = {"smoke": 2, "cpu": 1, "gpu": 1, "full": 1}


class Classification(Descent):
    """Accuracy on the test images."""

    name, metric, batch = "classification", "accuracy, %", 64
    budgets = ("smoke", "cpu", "gpu", "full")

    def __init__(self, setting: Setting) -> None:
        self.budget, self.device = setting.budget, setting.device
        self.epochs = EPOCHS[self.budget]
        if setting.root is None:
            images, labels = made_up(256, 32) - 0.5, torch.arange(256) % 10
            self.train, self.test = (images, labels), (images[:64], labels[:64])
        else:
            self.train, self.test = load_cifar(setting.root, IMAGES[self.budget], 10_000)
        self.steps_per_epoch = len(self.train[0]) // self.batch
        self.differs = (
            f"width {WIDTH[self.budget]}, {len(self.train[0]):,} training images, as JPEG of about 30 dB where the "
            f"data are, {self.epochs} epochs (published: width 1, 50,000 lossless images, 250 epochs)",
        )

    def build(self) -> Parts:
        """torchvision's network with a stem for small images, and SGD."""
        net = mobilenet_v2(num_classes=10, width_mult=WIDTH[self.budget], dropout=0.0)
        net.features[0][0].stride = (STRIDE[self.budget],) * 2
        if self.budget == "full":
            net.features[2].conv[1][0].stride = (1, 1)
        net.to(memory_format=torch.channels_last)  # twice as fast on CPUs
        sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        return Parts({"mobilenet_v2": net}, {}, {"sgd": sgd})

    def examples(self) -> dict[str, Any]:
        """Two images."""
        return {"mobilenet_v2": self.train[0][:2].to(self.device)}

    def published_rate(self, share: float) -> float:
        """Half a cosine."""
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Images, shifted and mirrored at random, and their classes."""
        images, labels = self.train
        chosen = torch.randint(len(images), (self.batch,))
        x = _shifted(images[chosen]).to(self.device, memory_format=torch.channels_last)
        return x, labels[chosen].to(self.device)

    def loss(self, parts: Parts, *batch: Tensor) -> Tensor:
        """Cross entropy."""
        x, labels = batch
        return F.cross_entropy(parts.nets["mobilenet_v2"](x), labels)

    @torch.no_grad()
    def evaluate(self, parts: Parts, runs: Mapping[str, Run]) -> dict[str, float]:
        """Of all test images."""
        images, labels = self.test
        answers = [runs["mobilenet_v2"](x.to(self.device)).cpu().argmax(1) for x in images.split(250)]
        return {self.metric: 100 * float((torch.cat(answers) == labels).float().mean())}


def _shifted(x: Tensor) -> Tensor:
    dy, dx = torch.randint(0, 9, (2,)).tolist()
    x = torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(3), x)
    return F.pad(x, (4, 4, 4, 4))[..., dy : dy + 32, dx : dx + 32]


if __name__ == "__main__":
    sys.exit(run(Classification, str(__doc__)))
