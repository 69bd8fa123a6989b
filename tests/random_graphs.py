"""Random networks and random specs: every seed gives a model, a spec and an input."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, lambda: nn.LeakyReLU(0.1), nn.Hardsigmoid,
]  # fmt: skip


@dataclass
class Step:
    """One operation: which tensors it takes, by index, and what it does with them."""

    inputs: tuple[int, ...]
    function: Callable[..., Tensor]
    module: nn.Module | None = None


class RandomNet(nn.Module):
    """Random operations on images, then a head."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        modules = list(dict.fromkeys(s.module for s in steps if s.module is not None))
        self.layers = nn.ModuleList(modules)
        self._steps = tuple(
            (s.inputs, s.function, None if s.module is None else modules.index(s.module)) for s in steps
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for inputs, function, module in self._steps:
            given = [values[i] for i in inputs]
            values.append(function(*given) if module is None else function(self.layers[module], *given))
        return values[-1]


def call(module: Any, x: Tensor) -> Tensor:
    return module(x)  # type: ignore[no-any-return]


@dataclass
class Builder:
    """Adds random steps; knows the shape of every tensor by computing it."""

    rng: random.Random
    steps: list[Step] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    reusable: list[tuple[nn.Module, tuple[int, ...]]] = field(default_factory=list)

    def add(self, inputs: tuple[int, ...], function: Callable[..., Tensor], module: nn.Module | None = None) -> int:
        given = [self.values[i] for i in inputs]
        with torch.no_grad():
            self.values.append(function(*given) if module is None else function(module, *given))
        self.steps.append(Step(inputs, function, module))
        return len(self.values) - 1

    def pick(self) -> int:
        return self.rng.choice(range(max(0, len(self.values) - 4), len(self.values)))

    def convolve(self) -> None:
        i = self.pick()
        channels, size = self.values[i].shape[1], self.values[i].shape[2]
        kind = self.rng.choice(["plain", "plain", "point", "depthwise", "grouped", "strided", "dilated", "transposed"])
        out = self.rng.choice([2, 4, 6, 8])
        bias = self.rng.random() < 0.6
        groups = channels if kind == "depthwise" else 2 if kind == "grouped" and channels % 2 == 0 else 1
        out = out if out % groups == 0 else channels
        if kind == "transposed":
            layer: nn.Module = nn.ConvTranspose2d(channels, out, 2, stride=self.rng.choice([1, 2]), bias=bias)
        elif kind == "point" or size < 4:
            layer = nn.Conv2d(channels, out, 1, groups=groups, bias=bias)
        else:
            stride, dilation = (2, 1) if kind == "strided" else (1, 2 if kind == "dilated" else 1)
            layer = nn.Conv2d(channels, out, 3, stride, dilation, dilation, groups, bias)
        parts = [layer]
        if self.rng.random() < 0.6:
            parts.append(self.batch_norm(out))
        parts.append(self.rng.choice(ACTIVATIONS)())
        module = nn.Sequential(*parts)
        self.reusable.append((module, self.values[i].shape))
        self.add((i,), call, module)

    def batch_norm(self, channels: int) -> nn.Module:
        norm = nn.BatchNorm2d(channels)
        for t in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(t)  # type: ignore[arg-type]
        with torch.no_grad():
            norm.running_var.uniform_(0.1, 2)  # type: ignore[union-attr]
            if self.rng.random() < 0.3:
                norm.weight[0] = 0
        return norm

    def reuse(self) -> None:
        found = [(m, i) for m, shape in self.reusable for i, v in enumerate(self.values) if v.shape == shape]
        if found:
            module, i = self.rng.choice(found)
            self.add((i,), call, module)

    def join(self) -> None:
        i = self.pick()
        same = [j for j, v in enumerate(self.values) if v.shape == self.values[i].shape]
        self.add((i, self.rng.choice(same)), self.rng.choice([torch.add, torch.add, torch.mul]))

    def concatenate(self) -> None:
        i = self.pick()
        same = [j for j, v in enumerate(self.values) if v.shape[2:] == self.values[i].shape[2:]]
        self.add((i, self.rng.choice(same)), _cat)

    def move(self) -> None:
        i = self.pick()
        _, channels, size, _ = self.values[i].shape
        options: list[Callable[[Tensor], Tensor]] = [_pad, _upsample, _transpose]
        if size >= 4:
            options += [_max_pool, _average_pool, _slice]
        if channels % 4 == 0:
            options += [_pixel_shuffle, _shuffle]
        if channels % 2 == 0:
            options.append(_half)
        self.add((i,), self.rng.choice(options))

    def head(self) -> None:
        last = len(self.values) - 1
        kind = self.rng.choice(["flat", "pooled", "tokens", "attention", "sequence"])
        if kind == "flat":
            last = self.add((last,), _shrink)
            last = self.add((last,), _flatten)
        elif kind == "pooled":
            last = self.add((self.add((last,), _global_pool),), _flatten)
        elif kind == "sequence":
            layer = nn.Sequential(nn.Conv1d(self.values[last].shape[1], 4, 3, padding=1), nn.ReLU())
            last = self.add((self.add((self.add((last,), _shrink),), _sequence),), call, layer)
            last = self.add((last,), _flatten)
        else:
            last = self.add((self.add((last,), _shrink),), _tokens)
            width = self.values[last].shape[2]
            if kind == "attention":
                last = self.add((last,), _attend, nn.Linear(width, 3 * width))
            last = self.add((last,), call, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6), nn.GELU()))
            last = self.add((last,), _mean)
        features = self.values[last].shape[1]
        self.add((last,), call, nn.Sequential(nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, 3)))


def random_model(seed: int) -> tuple[nn.Module, Tensor]:
    """A model and an input of two images."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels, size = rng.choice([2, 3, 4]), rng.choice([6, 8, 9])
    x = torch.randn(2, channels, size, size)
    builder = Builder(rng, values=[x])
    builder.convolve()
    actions = [builder.convolve] * 4 + [
        builder.join,
        builder.join,
        builder.concatenate,
        builder.move,
        builder.move,
        builder.reuse,
    ]
    for _ in range(rng.randint(2, 8)):
        if builder.values[-1].numel() < 20_000:
            rng.choice(actions)()
    builder.head()
    return RandomNet(builder.steps), x


def random_spec(seed: int) -> dict[str, Any]:
    """Rules for weights and activations, of any width and kind."""
    rng = random.Random(seed + 10**6)
    rules: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        rules.append({"op": "prune", "target": "weight", "sparsity": rng.choice([0.2, 0.5, 0.9]), "steps": 2})
    for target in ("weight", "activation"):
        bits = rng.choice([8, 8, 8, 4, rng.randint(2, 16)])
        rule = {"op": "quantize", "target": target, "bits": bits, "first_last_bits": rng.choice([8, max(bits, 2)])}
        rule["range"] = rng.choice(["min-max", "moving-average", "mse", "entropy", {"quantile": [0.001, 0.999]}])
        if rng.random() < 0.2:
            rule["scale"] = "power-of-two"
        if target == "weight" and rng.random() < 0.3:
            rule["per_channel"] = False
        if target == "activation" and rng.random() < 0.3:
            rule["symmetric"] = True
        rules.append(rule)
    return {"rules": rules}


def _cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def _pad(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0, 0, 1))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if x.shape[2] < 8 else x.flip(2)


def _transpose(x: Tensor) -> Tensor:
    return x.transpose(2, 3)


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1)


def _slice(x: Tensor) -> Tensor:
    return x[:, :, 1:, :-1]


def _half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def _pixel_shuffle(x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, 2)


def _shuffle(x: Tensor) -> Tensor:
    return F.channel_shuffle(x, 2)


def _global_pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def _shrink(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1) if x.shape[2] < 2 else F.max_pool2d(x[:, :, :4, :4], 2) if x.shape[2] >= 4 else x


def _flatten(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def _sequence(x: Tensor) -> Tensor:
    return x.flatten(2)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1)


def _attend(layer: Any, x: Tensor) -> Tensor:
    q, k, v = layer(x).chunk(3, -1)
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v
