"""What all methods do alike: the fine-tune, and what is measured of logits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accuracy_parts.data import Task


@dataclass(frozen=True)
class Recipe:
    """A short fine-tune, the same for every method: SGD with momentum or Adam, no weight decay, cosine to zero.

    The loss is cross entropy with labels, or the divergence from the float model's answers where `distill` is set.
    """

    steps: int
    batch: int
    lr: float
    adam: bool
    distill: bool

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer."""
        if self.adam:
            return torch.optim.Adam(parameters, self.lr)
        return torch.optim.SGD(parameters, self.lr, momentum=0.9)


RECIPES = {
    "resnet20": Recipe(100, 128, 0.01, adam=False, distill=False),
    "efficientnet_lite0": Recipe(24, 16, 3e-4, adam=True, distill=True),
}


def calibration_batches(task: Task) -> list[Tensor]:
    """The calibration images as the network takes them, 64 (CIFAR-10) or 16 at a time."""
    return [task.float(part) for part in task.calibration.split(64 if task.classes is None else 16)]


def fine_tune(net: nn.Module, optimizer: torch.optim.Optimizer, teacher: nn.Module, task: Task, work: Work) -> None:
    """Train `net` in place by the recipe; ends in evaluation mode."""
    recipe, (images, labels) = work.recipe, task.train
    order = _batches(len(images), recipe, work.seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for step, chosen in enumerate(order):
        x = task.float(images[chosen])
        net.train()
        if recipe.distill:
            with torch.no_grad():
                wanted = teacher(x).log_softmax(1)
            loss = F.kl_div(net(x).log_softmax(1), wanted, reduction="batchmean", log_target=True)
        else:
            loss = F.cross_entropy(net(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss):.4f}", flush=True)
    net.eval()


@dataclass(frozen=True)
class Work:
    """One cell of the table."""

    model: str
    bits: int
    edge_bits: int
    seed: int
    recipe: Recipe


def _batches(count: int, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """Shuffled again after every pass over the images; a pass ends where less than a batch is left."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while True:
        for chosen in torch.randperm(count, generator=generator).split(recipe.batch):
            if done == recipe.steps:
                return
            if len(chosen) == recipe.batch:
                done += 1
                yield chosen


@dataclass(frozen=True)
class Figures:
    """What logits say against labels and against the float model's logits.

    `accuracy` of labelled images in percent; `agreement`: same top-1 answer, in percent; `divergence`: mean
    Kullback-Leibler divergence from the float model's probabilities, in nats; `error`: mean squared error of the logits
    over their variance around each image's mean.
    """

    accuracy: float
    agreement: float
    divergence: float
    error: float

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


def figures(logits: Tensor, reference: Tensor, labels: Tensor, classes: tuple[int, ...] | None = None) -> Figures:
    """Compare logits with the float model's and with labels; -1 is no label."""
    known = labels >= 0
    answers = logits[known].argmax(1)
    if classes is not None:
        answers = torch.tensor(classes)[logits[known][:, list(classes)].argmax(1)]
    centred = reference - reference.mean(1, keepdim=True)
    probability = F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True)
    return Figures(
        100 * float((answers == labels[known]).float().mean()),
        100 * float((logits.argmax(1) == reference.argmax(1)).float().mean()),
        float(probability),
        float((logits - reference).square().mean() / centred.square().mean()),
    )


@torch.no_grad()
def logits_of(run: Callable[[Tensor], Tensor], images: Tensor, task: Task) -> Tensor:
    """Logits of images, some at a time."""
    return torch.cat([run(task.float(part)) for part in images.split(50)])


def set_threads() -> None:
    """As many threads as THREADS says, else one, which for such small networks is often the fastest."""
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
