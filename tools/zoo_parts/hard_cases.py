"""Hand-written hard cases: control flow, modes, weights in odd places, in-place code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DataBranch(nn.Module):
    """Branches on the data in the middle of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(8, 8), Gate(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.stem(x)))


class Gate(nn.Module):
    """Takes one of two layers, by the sum of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(x) if x.sum() > 0 else self.low(x)


class Windows(nn.Module):
    """Pads to a multiple of the window and attends within windows, with shapes from everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = F.pad(x, (0, -w % 4, 0, -h % 4)) if h % 4 or w % 4 else x
        rows = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(rows).chunk(3, -1)
        y = self.proj(torch.softmax(q @ k.transpose(1, 2) / c**0.5, -1) @ v)
        return y.transpose(1, 2).reshape(b, c, *x.shape[2:])[:, :, :h, :w]


class Modes(nn.Module):
    """Functional dropout, an auxiliary head in training, and layer drop by Python."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux, self.head = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.dropout(self.body(x), 0.3, self.training)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Weights(nn.Module):
    """Functional use, tied weights, weight norm and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.out.weight = self.embed.weight
        self.kernel = nn.Parameter(torch.randn(8, 8, 3) * 0.2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))

    def forward(self, ids: Tensor) -> Tensor:
        x = F.conv1d(self.embed(ids).transpose(1, 2), self.kernel, padding=1).transpose(1, 2)
        return self.out(torch.relu(self.spectral(torch.relu(self.normed(x)))))


class InPlace(nn.Module):
    """Writes into its activations through views, augmented assignment and `out=`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, 0] = 0
        y += 1
        buffer = torch.zeros(y.shape, device=y.device)
        buffer[:, 1:] = y[:, :-1].detach()
        return self.b(F.relu_(y) + buffer)


class Recurrent(nn.Module):
    """Embedding, LSTM, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.fc = nn.Embedding(16, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embed(ids))[0])


class Encoder(nn.Module):
    """torch's own transformer encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Counting(nn.Module):
    """A stem that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = Counter(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x))


class Counter(nn.Module):
    """A layer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x)


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "data-branch": lambda: (DataBranch(), (torch.randn(4, 8),)),
    "windows": lambda: (Windows(), (torch.randn(2, 8, 6, 7),)),
    "modes": lambda: (Modes(), (torch.randn(4, 8),)),
    "weights": lambda: (Weights(), (torch.randint(0, 16, (2, 5)),)),
    "in-place": lambda: (InPlace(), (torch.randn(2, 3, 6, 6),)),
    "recurrent": lambda: (Recurrent(), (torch.randint(0, 16, (2, 5)),)),
    "transformer-encoder": lambda: (Encoder(), (torch.randn(2, 5, 16),)),
    "counting": lambda: (Counting(), (torch.randn(4, 8),)),
}
