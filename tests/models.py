"""Small models that use what large ones use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions of all kinds, batch norm, a residual add, a concatenation, pooling, dropout and a linear layer."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU6()
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.side = nn.Conv2d(width, width, 1)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        y = self.bn3(self.point(self.act(self.bn2(self.depthwise(x)))))
        y += x
        z = torch.cat([self.relu(y), torch.relu(self.side(x))], 1)
        z = nn.functional.adaptive_avg_pool2d(self.pool(z), 1)
        return self.fc(self.drop(torch.flatten(z, 1)))


class Branches(nn.Module):
    """Python that branches on `training`: an auxiliary head in training, functional dropout, another output type."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.aux = nn.Linear(6, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor | tuple[Tensor, Tensor]:
        x = nn.functional.dropout(torch.relu(self.body(x)) * scale, 0.5, self.training)
        if self.training:
            return self.head(x), self.aux(x)
        return self.head(x)


def train(net: nn.Module, batches: int, shape: tuple[int, ...], lr: float = 0.05, seed: int = 0) -> list[float]:
    """Losses of a few steps on noise; the net's schedule is moved by hand unless an optimizer is attached."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    net.train()
    losses = []
    for _ in range(batches):
        out = net(torch.randn(shape, generator=generator))
        loss = (out[0] if isinstance(out, tuple) else out).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.schedule.step()
        losses.append(float(loss.detach()))
    return losses
