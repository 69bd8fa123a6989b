#!/usr/bin/env python3
"""CycleGAN, horses to zebras: tools/paper/cyclegan.py --data-root DATA --work WORK --features FILE."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any

import torch
from paper_parts.cyclegan_nets import ResNetGenerator
from paper_parts.images import made_up, side_by_side
from paper_parts.pix2pix_nets import patch_discriminator, start_normal
from paper_parts.runner import run
from paper_parts.task import Parts, Run, Setting, Task
from paper_parts.translation import FID, distance, features_of, linear_decay, read_folder, resized, trains
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = {"smoke": 32, "cpu": 96, "full": 256}
WIDTH = {"smoke": 4, "cpu": 16, "full": 64}
BLOCKS = {"smoke": 1, "cpu": 4, "full": 9}
EPOCHS = {"smoke": 2, "cpu": 10, "full": 300}
CYCLE, IDENTITY = 10.0, 5.0
MARGIN = 1.117
SIDES = ("zebra", "horse")


class CycleGan(Task):
    """FID of zebras made of the test horses. Both generators are compressed."""

    name, metric, higher_is_better, dense = "cyclegan", FID, False, ("first", "last")

    def __init__(self, setting: Setting) -> None:
        self.budget, self.device, self.size = setting.budget, setting.device, SIZE[setting.budget]
        self.features, said = features_of(setting)
        if setting.root is None:
            self.train = {side: made_up(4, 36) * 2 - 1 for side in SIDES}
            self.test = self.train
        else:
            folder = setting.root / "horse2zebra"
            self.train = {"horse": read_folder(folder / "trainA"), "zebra": read_folder(folder / "trainB")}
            self.test = {"horse": read_folder(folder / "testA"), "zebra": read_folder(folder / "testB")}
        self.epochs, self.steps_per_epoch = EPOCHS[self.budget], len(self.train["horse"])
        self.differs = (
            f"{self.size} pixels, width {WIDTH[self.budget]}, {BLOCKS[self.budget]} blocks, {self.steps_per_epoch} "
            f"training images a side, {self.epochs} epochs (published: 256 pixels, width 64, 9 blocks, about 1,100 "
            "images, 300 epochs)",
            f"{said}, of {len(self.test['horse'])} images: to be compared within this table only",
            "critics see the last image, not one of a pool of 50",
        )

    def build(self) -> Parts:
        """A generator and a critic for each side, one Adam for generators and one for critics."""
        width = WIDTH[self.budget]
        nets = {f"to_{side}": start_normal(ResNetGenerator(width, BLOCKS[self.budget])) for side in SIDES}
        critics = {f"is_{side}": start_normal(patch_discriminator(3, width, nn.InstanceNorm2d)) for side in SIDES}
        adam = {
            name: torch.optim.Adam(itertools.chain(*(p.parameters() for p in parts.values())), 2e-4, (0.5, 0.999))
            for name, parts in (("generators", nets), ("critics", critics))
        }
        return Parts(nets, critics, adam)

    def examples(self) -> dict[str, Any]:
        """An image for each generator."""
        return {f"to_{side}": made_up(1, self.size).to(self.device) for side in SIDES}

    def published_rate(self, share: float) -> float:
        """Constant, then to zero in a line."""
        return linear_decay(share)

    def step(self, parts: Parts) -> None:
        """Generators deceive critics, bring images back and leave those of their own side; then the critics learn."""
        real = {side: self._drawn(side) for side in SIDES}
        for critic in parts.others.values():
            trains(critic, False)
        parts.optimizers["generators"].zero_grad()
        made, loss = {}, torch.zeros((), device=self.device)
        for side, other in (SIDES, SIDES[::-1]):
            to_side, back = parts.nets[f"to_{side}"], parts.nets[f"to_{other}"]
            made[side] = to_side(real[other])
            loss = loss + _squares(parts.others[f"is_{side}"](made[side]), 1.0)
            loss = loss + CYCLE * F.l1_loss(back(made[side]), real[other])
            loss = loss + IDENTITY * F.l1_loss(to_side(real[side]), real[side])
        loss.backward()
        parts.optimizers["generators"].step()
        parts.optimizers["critics"].zero_grad()
        for side in SIDES:
            critic = parts.others[f"is_{side}"]
            trains(critic, True)
            (0.5 * (_squares(critic(real[side]), 1.0) + _squares(critic(made[side].detach()), 0.0))).backward()
        parts.optimizers["critics"].step()

    @torch.no_grad()
    def evaluate(self, parts: Parts, runs: Mapping[str, Run]) -> dict[str, float]:
        """FID of made zebras, and of made horses."""
        found = {}
        for side, other in (SIDES, SIDES[::-1]):
            given = resized(self.test[other], self.size)
            made = [runs[f"to_{side}"](x[None].to(self.device)).cpu() for x in given]
            name = self.metric if side == "zebra" else f"{self.metric}, horses"
            found[name] = distance(self.features, resized(self.test[side], self.size), made)
        return found

    @torch.no_grad()
    def pictures(self, run: Run) -> list[Image.Image]:
        """Four zebras."""
        given = resized(self.test["horse"][:4], self.size)
        return [side_by_side([(run(x[None].to(self.device)).cpu()[0] + 1) / 2 for x in given])]

    def _drawn(self, side: str) -> Tensor:
        larger = int(MARGIN * self.size)
        image = resized(self.train[side][torch.randint(len(self.train[side]), (1,))], larger)
        top, left = torch.randint(larger - self.size + 1, (2,)).tolist()
        image = image[..., top : top + self.size, left : left + self.size]
        return (image.flip(3) if torch.rand(()) < 0.5 else image).to(self.device)


def _squares(judged: Tensor, wanted: float) -> Tensor:
    return F.mse_loss(judged, torch.full_like(judged, wanted))


if __name__ == "__main__":
    sys.exit(run(CycleGan, str(__doc__)))
