#!/usr/bin/env python3
"""Pix2Pix, label maps to facades: tools/paper/pix2pix.py --data-root DATA --work WORK --features FILE."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from paper_parts.images import made_up, side_by_side
from paper_parts.pix2pix_nets import UNet, patch_discriminator, start_normal
from paper_parts.runner import run
from paper_parts.task import Parts, Run, Setting, Task
from paper_parts.translation import FID, distance, features_of, linear_decay, read_folder, resized, trains
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIZE = {"smoke": 32, "cpu": 128, "full": 256}
WIDTH = {"smoke": 8, "cpu": 16, "full": 64}
EPOCHS = {"smoke": 2, "cpu": 15, "full": 300}
L1 = 100.0
MARGIN = 1.117
"""Images are drawn so much larger, and cut at random."""


class Pix2Pix(Task):
    """FID of photos made of the test label maps."""

    name, metric, higher_is_better, dense = "pix2pix", FID, False, ("first", "first.*", "last")

    def __init__(self, setting: Setting) -> None:
        self.budget, self.device, self.size = setting.budget, setting.device, SIZE[setting.budget]
        self.features, said = features_of(setting)
        if setting.root is None:
            self.train = self.test = torch.cat([made_up(4, 36), made_up(4, 36)], 3) * 2 - 1
        else:
            self.train, self.test = (read_folder(setting.root / "facades" / part) for part in ("train", "test"))
        self.epochs, self.steps_per_epoch = EPOCHS[self.budget], len(self.train)
        self.differs = (
            f"{self.size} pixels, width {WIDTH[self.budget]}, {len(self.train)} training and {len(self.test)} test "
            f"images, {self.epochs} epochs (published: 256 pixels, width 64, 300 epochs), evaluated in evaluation mode",
            f"{said}, of {len(self.test)} images: to be compared within this table only",
        )

    def build(self) -> Parts:
        """Generator, discriminator, and Adam for each."""
        net = start_normal(UNet(WIDTH[self.budget], self.size.bit_length() - 1))
        critic = start_normal(patch_discriminator(6, WIDTH[self.budget]))
        adam = {
            name: torch.optim.Adam(part.parameters(), 2e-4, (0.5, 0.999))
            for name, part in (("generator", net), ("critic", critic))
        }
        return Parts({"generator": net}, {"critic": critic}, adam)

    def examples(self) -> dict[str, Any]:
        """A label map."""
        return {"generator": made_up(1, self.size).to(self.device)}

    def published_rate(self, share: float) -> float:
        """Constant, then to zero in a line."""
        return linear_decay(share)

    def step(self, parts: Parts) -> None:
        """The critic learns to tell made photos from real ones, the generator to deceive it and to be near the real."""
        labels, photo = self._pair(int(torch.randint(len(self.train), ())))
        net, critic = parts.nets["generator"], parts.others["critic"]
        made = net(labels)
        trains(critic, True)
        parts.optimizers["critic"].zero_grad()
        real = critic(torch.cat([labels, photo], 1))
        fake = critic(torch.cat([labels, made.detach()], 1))
        (0.5 * (_logistic(real, True) + _logistic(fake, False))).backward()
        parts.optimizers["critic"].step()
        trains(critic, False)
        parts.optimizers["generator"].zero_grad()
        judged = critic(torch.cat([labels, made], 1))
        (_logistic(judged, True) + L1 * F.l1_loss(made, photo)).backward()
        parts.optimizers["generator"].step()

    @torch.no_grad()
    def evaluate(self, parts: Parts, runs: Mapping[str, Run]) -> dict[str, float]:
        """FID, and the mean difference from the real photo."""
        labels, photos = _halves(self.test, self.size)
        made = [runs["generator"](x[None].to(self.device)).cpu() for x in labels]
        return {
            self.metric: distance(self.features, photos, made),
            "L1": float((torch.cat(made) - photos).abs().mean()),
        }

    @torch.no_grad()
    def pictures(self, run: Run) -> list[Image.Image]:
        """Four photos."""
        labels, _ = _halves(self.test[:4], self.size)
        return [side_by_side([(run(x[None].to(self.device)).cpu()[0] + 1) / 2 for x in labels])]

    def _pair(self, number: int) -> tuple[Tensor, Tensor]:
        larger = int(MARGIN * self.size)
        both = torch.cat(_halves(self.train[number : number + 1], larger), 1)
        top, left = torch.randint(larger - self.size + 1, (2,)).tolist()
        both = both[..., top : top + self.size, left : left + self.size]
        both = (both.flip(3) if torch.rand(()) < 0.5 else both).to(self.device)
        return both[:, :3], both[:, 3:]


def _halves(images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Label maps, on the right, and photos, on the left."""
    middle = images.shape[3] // 2
    return resized(images[..., middle:], size), resized(images[..., :middle], size)


def _logistic(judged: Tensor, is_real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(judged, torch.full_like(judged, float(is_real)))


if __name__ == "__main__":
    sys.exit(run(Pix2Pix, str(__doc__)))
