"""Small real tasks: a model as anyone would write it, its data, and how it is trained and tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_parts.cifar import load_cifar
from paper_parts.espcn import Espcn
from paper_parts.images import luminance, psnr, read_image
from super_resolution import PATCH, SCALE, cropped, patch, smaller
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.demo.data import load as load_digits
from fxcompress.demo.net import DigitsNet, ResidualBlock
from fxcompress.spec import Spec

Rate = Callable[[int, int], float]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """`published`: whose times of the paper fit; `sizes`: the policy for masks where tested images have other sizes."""

    name: str
    published: str
    metric: str
    total_steps: int
    build: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
    batch: Callable[[], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    evaluate: Callable[[nn.Module], float]
    example_inputs: Tensor
    sizes: str = "same"

    def trainer(self, rate: Rate) -> Callable[[nn.Module, torch.optim.Optimizer], None]:
        """A plain training loop with this share of the learning rate at each step."""

        def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, self.total_steps))
            net.train()
            for _ in range(self.total_steps):
                x, wanted = self.batch()
                optimizer.zero_grad()
                self.loss(net(x), wanted).backward()
                optimizer.step()
                schedule.step()

        return train

    def sized(self, arms: Mapping[str, Any]) -> dict[str, Any]:
        """The arms with the task's policy for masks of activations."""
        return {name: _sized(Spec.of(spec), self.sizes) for name, spec in arms.items()}


def _sized(spec: Spec, sizes: str) -> Spec:
    if sizes == "same":
        return spec
    rules: list[dict[str, Any]] = []
    for rule in spec.to_dict()["rules"]:
        targets = rule["target"] if isinstance(rule["target"], list) else [rule["target"]]
        for target in targets:
            more = {"sizes": sizes} if rule["op"] == "prune" and target == "activation" else {}
            rules.append({**rule, "target": target, **more})
    return Spec.of({"rules": rules})


def load_task(name: str, root: Path | None, steps: int | None = None) -> Task:
    """The task by name; `root` has the data of all but "digits". Raises ValueError where it is missing."""
    if name == "digits":
        return _digits(steps or 400)
    if root is None:
        raise ValueError(f"task '{name}' needs --data-root")
    return _cifar(root, steps or 500) if name == "cifar" else _espcn(root, steps or 1500)


def _accuracy(images: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    @torch.no_grad()
    def evaluate(net: nn.Module) -> float:
        answers = torch.cat([net(part).argmax(1) for part in images.split(250)])
        return 100 * float((answers == labels).float().mean())

    return evaluate


def _digits(steps: int) -> Task:
    data = load_digits(0)

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = DigitsNet(12)
        return model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)

    def batch() -> Batch:
        chosen = torch.randint(len(data.train_images), (64,))
        dy, dx = torch.randint(0, 3, (2,)).tolist()
        return F.pad(data.train_images[chosen], (1, 1, 1, 1))[..., dy : dy + 8, dx : dx + 8], data.train_classes[chosen]

    evaluate = _accuracy(data.test_images, data.test_classes)
    example = data.train_images[:4]
    return Task("digits", "classification", "accuracy, %", steps, build, batch, F.cross_entropy, evaluate, example)


class SmallResNet(nn.Module):
    """Three residual blocks for images of 32 x 32."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.block3 = ResidualBlock(2 * width, 4 * width, stride=2)
        self.pool, self.classify = nn.AdaptiveAvgPool2d(1), nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] to [N, 10] logits."""
        x = self.block3(self.block2(self.block1(self.stem(x))))
        return self.classify(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]


def _cifar(root: Path, steps: int) -> Task:
    (images, labels), test = load_cifar(root, 10_000, 2_000)

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = SmallResNet()
        return model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)

    def batch() -> Batch:
        chosen = torch.randint(len(images), (64,))
        dy, dx = torch.randint(0, 9, (2,)).tolist()
        x = images[chosen]
        x = torch.where((torch.rand(64) < 0.5)[:, None, None, None], x.flip(3), x)
        return F.pad(x, (4, 4, 4, 4))[..., dy : dy + 32, dx : dx + 32], labels[chosen]

    evaluate = _accuracy(*test)
    return Task("cifar", "classification", "accuracy, %", steps, build, batch, F.cross_entropy, evaluate, images[:4])


def _espcn(root: Path, steps: int) -> Task:
    train = [luminance(read_image(file)) for file in sorted((root / "t91").glob("*.png"))]
    test = [cropped(luminance(read_image(file))) for file in sorted((root / "set5").glob("*.png"))]

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Espcn()
        return model, torch.optim.Adam(model.parameters(), 1e-3)

    def batch() -> Batch:
        patches = [patch(train[i]) for i in torch.randint(len(train), (16,)).tolist()]
        high = torch.stack(patches)
        return smaller(high), high

    @torch.no_grad()
    def evaluate(net: nn.Module) -> float:
        return float(np.mean([psnr(net(smaller(high[None])), high[None], SCALE) for high in test]))

    example = torch.rand(2, 1, PATCH // SCALE, PATCH // SCALE, generator=torch.Generator().manual_seed(0))
    return Task(
        "espcn", "super-resolution", "PSNR on Set5, dB", steps, build, batch, F.mse_loss, evaluate, example, "centre"
    )
