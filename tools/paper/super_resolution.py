#!/usr/bin/env python3
"""ESPCN x3 from T91 to Set5: tools/paper/super_resolution.py --data-root DATA --work WORK [--seed 0 1 2]."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from typing import Any

import torch
from paper_parts.espcn import Espcn
from paper_parts.images import luminance, made_up, psnr, read_image, side_by_side
from paper_parts.runner import run
from paper_parts.task import Parts, Run, Setting, Task
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

SCALE, PATCH = 3, 51
PATCHES = {"smoke": 4, "cpu": 4, "full": 18}
"""Drawn from each training image in an epoch; 18 cover as many pixels as the images have."""


class SuperResolution(Task):
    """PSNR of the luminance of Set5, low resolution by bicubic interpolation without antialiasing."""

    name, metric, batch = "super-resolution", "PSNR, dB", 16

    def __init__(self, setting: Setting) -> None:
        root, patches = setting.root, PATCHES[setting.budget]
        self.device, self.epochs = setting.device, 2 if setting.budget == "smoke" else 200
        if root is None:
            self.train, self.test = list(made_up(8, 60, 1)), [x[:, :54, :54] for x in made_up(2, 60, 1)]
        else:
            self.train = [luminance(read_image(file)) for file in sorted((root / "t91").glob("*.png"))]
            self.test = [cropped(luminance(read_image(file))) for file in sorted((root / "set5").glob("*.png"))]
        self.steps_per_epoch = -(-len(self.train) * patches // self.batch)
        self.differs = (
            "low resolution without antialiasing, where bicubic interpolation has 28.30 dB on Set5 (published: with)",
            f"an epoch has {patches} patches of {PATCH} pixels of each of {len(self.train)} images; ReLU, not tanh",
        )

    def build(self) -> Parts:
        """The network, and Adam with a tenth of the rate for the last layer."""
        net = Espcn(SCALE)
        last = list(net.conv3.parameters())
        first = [p for p in net.parameters() if all(p is not q for q in last)]
        adam = torch.optim.Adam([{"params": first}, {"params": last, "lr": 1e-4}], 1e-3)
        return Parts({"espcn": net}, {}, {"adam": adam})

    def examples(self) -> dict[str, Any]:
        """Low-resolution patches."""
        return {"espcn": made_up(2, PATCH // SCALE, 1).to(self.device)}

    def published_rate(self, share: float) -> float:
        """A tenth from 80 % on."""
        return 1.0 if share < 0.8 else 0.1

    def step(self, parts: Parts) -> None:
        """Squared error of a batch of random patches."""
        chosen = torch.randint(len(self.train), (self.batch,)).tolist()
        high = torch.stack([patch(self.train[i]) for i in chosen]).to(self.device)
        adam = parts.optimizers["adam"]
        adam.zero_grad()
        F.mse_loss(parts.nets["espcn"](smaller(high)), high).backward()
        adam.step()

    @torch.no_grad()
    def evaluate(self, parts: Parts, runs: Mapping[str, Run]) -> dict[str, float]:
        """PSNR without a border of three pixels, and SSIM."""
        pairs = [(runs["espcn"](smaller(high[None]).to(self.device)).cpu(), high[None]) for high in self.test]
        similar = [structural_similarity_index_measure(y.clamp(0, 1), high, data_range=1.0) for y, high in pairs]
        return {
            self.metric: statistics.mean(psnr(y, high, SCALE) for y, high in pairs),
            "SSIM": statistics.mean(float(s) for s in similar),
        }

    def exported(self) -> dict[str, Any]:
        """The middle one of the test images."""
        sizes = sorted(self.test, key=lambda high: high.numel())
        return {"espcn": smaller(sizes[len(sizes) // 2][None])}

    def fits_files(self) -> bool:
        """The test images have different sizes, and a file with masks on activations has one."""
        return False

    @torch.no_grad()
    def pictures(self, run: Run) -> list[Image.Image]:
        """A part of every test image."""
        answers = [run(smaller(high[None]).to(self.device)).cpu()[0] for high in self.test]
        return [side_by_side([_middle(y) for y in answers])]


def cropped(image: Tensor) -> Tensor:
    """[1, H, W] with sides that SCALE divides."""
    return image[:, : image.shape[1] // SCALE * SCALE, : image.shape[2] // SCALE * SCALE]


def _middle(image: Tensor, size: int = 150) -> Tensor:
    top, left = (max((length - size) // 2, 0) for length in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def patch(image: Tensor) -> Tensor:
    """A random square of PATCH pixels, mirrored at random."""
    top, left = (int(torch.randint(length - PATCH + 1, ())) for length in image.shape[1:])
    part = image[:, top : top + PATCH, left : left + PATCH]
    return part.flip(2) if torch.rand(()) < 0.5 else part


def smaller(high: Tensor) -> Tensor:
    """The low resolution of [N, 1, H, W]."""
    return F.interpolate(high, scale_factor=1 / SCALE, mode="bicubic", antialias=False)


if __name__ == "__main__":
    sys.exit(run(SuperResolution, str(__doc__)))
