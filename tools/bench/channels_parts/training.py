"""What all arms do alike: the batches, the optimizer, the test."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accuracy_parts.data import Task, load_task
from accuracy_parts.models import load_model
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, RATE, DECAY = 128, 0.02, 5e-4
PRUNED, QUANTIZED = 0.2, 0.8
"""Shares of training by which all channels are gone, and after which 8 bits begin."""
SOFT, TEMPERATURE = 0.9, 4.0
"""Weight and temperature of the float network's answers in the loss of the others (arXiv 1503.02531, section 2)."""


class Training:
    """One arm's run: the same images in the same order and the same learning rates as in every other arm."""

    def __init__(self, job: dict[str, Any]) -> None:
        root = Path(job["data_root"])
        self.task: Task = load_task("resnet20", root)
        self.model: nn.Module = load_model(job["model"], root)
        self.teacher: nn.Module | None = None
        self.state = Path(job["folder"]) / f"{job['model']}-float-{job['epochs']}-{job['seed']}.pt"
        self.seed, self.steps = int(job["seed"]), int(job["epochs"]) * (len(self.task.train[0]) // BATCH)

    def learn_from_float(self) -> None:
        """From now on labels and the trained float network's answers are what is learned."""
        self.teacher = copy.deepcopy(self.model).eval()
        self.teacher.load_state_dict(torch.load(self.state, weights_only=True))

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay."""
        return torch.optim.SGD(parameters, RATE, momentum=0.9, weight_decay=DECAY)

    def rate(self, step: int) -> float:
        """Half a cosine, from `RATE` to zero."""
        return RATE * (1 + float(torch.cos(torch.tensor(torch.pi * step / self.steps)))) / 2

    def run(self, net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        """Steps `first` to `last` of the run on `net`, in place."""
        net.train()
        for step in range(first, last):
            x, labels = self._batch(step)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step)
            loss = self._loss(net(x), x, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                print(f"step {step} of {self.steps}: loss {float(loss):.4f}", flush=True)
        net.eval()

    def _loss(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        hard = F.cross_entropy(logits, labels)
        if self.teacher is None:
            return hard
        with torch.no_grad():
            wanted = (self.teacher(x) / TEMPERATURE).log_softmax(1)
        soft = F.kl_div((logits / TEMPERATURE).log_softmax(1), wanted, reduction="batchmean", log_target=True)
        return (1 - SOFT) * hard + SOFT * TEMPERATURE**2 * soft

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step`: shuffled anew each epoch, flipped and shifted by up to 4 pixels."""
        images, labels = self.task.train
        epoch, place = divmod(step, len(images) // BATCH)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        draw = torch.Generator().manual_seed(10**6 * (self.seed + 1) + step)
        flips = torch.rand(BATCH, generator=draw) < 0.5
        dy, dx = torch.randint(0, 9, (2,), generator=draw).tolist()
        x = images[chosen]
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
        x = F.pad(x, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
        return self.task.float(x), labels[chosen]

    @torch.no_grad()
    def accuracy(self, run: Callable[[Tensor], Tensor]) -> float:
        """Percent of the test images."""
        images, labels = self.task.test
        answers = torch.cat([run(self.task.float(part)).argmax(1) for part in images.split(200)])
        return 100 * float((answers == labels).float().mean())


def macs_of(net: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    total = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal total
        weight: Any = module.weight
        places = output[0, 0].numel() if output.ndim == 4 else 1
        total += weight.numel() * places

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net.eval()(x[:1])
    for hook in hooks:
        hook.remove()
    return total
