"""Contract 7 as a property: whatever the shapes, ties, sparsities, patterns and optimizers, what is pruned stays so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxcompress as fxc

Maker = Callable[[Any], Optimizer]
OPTIMIZERS: dict[str, Maker] = {
    "sgd": lambda p: SGD(p, lr=0.005),
    "momentum": lambda p: SGD(p, lr=0.005, momentum=0.9, weight_decay=0.05),
    "nesterov": lambda p: SGD(p, lr=0.005, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": lambda p: Adam(p, lr=0.05, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.05, weight_decay=0.5),
    "nadam": lambda p: NAdam(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.05),
}
PATTERNS = ("unstructured", "channel", "2:4", "1:2", "4x1", "1x4")
SIZES = {"conv": (4, 8, 4), "linear": (8, 12, 8)}


@dataclass(frozen=True)
class Case:
    """One network, rule and way to train; `levels` values a weight can have, so that many are equal."""

    kind: str
    groups: int
    pattern: str
    sparsity: float
    steps: int
    scope: str
    gradient: str
    optimizer: str
    levels: int
    clip: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pattern = draw(st.sampled_from(PATTERNS))
    scope = draw(st.sampled_from(["tensor", "tensor", "global"])) if ":" not in pattern else "tensor"
    most = 0.7 if scope == "global" else 0.99  # more than every layer's last entry leaves is refused
    return Case(
        kind := draw(st.sampled_from(sorted(SIZES))),
        draw(st.sampled_from([1, 2])) if kind == "conv" and pattern == "unstructured" else 1,
        pattern,
        draw(st.sampled_from([0.0, 0.01, 0.25, 0.5, most]) | st.floats(0, most)),
        draw(st.sampled_from([1, 2, 3])),
        scope,
        draw(st.sampled_from(["masked", "dense"])),
        draw(st.sampled_from(sorted(OPTIMIZERS))),
        draw(st.sampled_from([1, 2, 5, 10**6])),
        draw(st.booleans()),
    )


class Net(nn.Module):
    """Three products of a kind, with a batch norm behind the first."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        first, middle, last = SIZES[case.kind]
        if case.kind == "conv":
            self.a: nn.Module = nn.Conv2d(first, middle, 3, groups=case.groups)
            self.b: nn.Module = nn.Conv2d(middle, last, 1, bias=False)
            self.bn: nn.Module = nn.BatchNorm2d(middle)
        else:
            self.a, self.b, self.bn = nn.Linear(first, middle), nn.Linear(middle, last), nn.BatchNorm1d(middle)
        self.head = nn.Linear(last, 4)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in (self.a, self.b, self.head):
                shape = layer.weight.shape
                layer.weight.copy_(torch.randint(1, case.levels + 1, shape, generator=generator) / case.levels - 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.bn(self.a(x))))
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)  # type: ignore[no-any-return]


def example(case: Case, step: int) -> Tensor:
    shape = (5, 4, 6, 6) if case.kind == "conv" else (5, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def trained(case: Case) -> tuple[Any, Any]:
    """The net after its events and four steps more, and the moving average of its weights."""
    torch.manual_seed(0)
    model = Net(case)
    rule: dict[str, Any] = {
        "op": "prune", "target": "weight", "pattern": case.pattern, "gradient": case.gradient, "scope": case.scope,
        "start": 2, "match": {"name": ["a", "b"]},
    }  # fmt: skip
    if ":" not in case.pattern:
        rule |= {"sparsity": case.sparsity, "floor": 0.0}
        rule |= {"steps": case.steps, "end": 2 + case.steps} if case.steps > 1 else {"ramp": "one-shot"}
    grid = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 6}
    optimizer = OPTIMIZERS[case.optimizer](model.parameters())
    net = fxc.compress(model, {"rules": [rule, grid]}, example(case, 0), total_steps=10, optimizer=optimizer)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=False)
    for step in range(10):
        optimizer.zero_grad()
        (net(example(case, step)) - 1).square().mean().backward()
        if case.clip:
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
        average.update_parameters(net)
    average.module.load_state_dict({**net.state_dict(), **dict(average.module.named_parameters())})
    return net.eval(), average.module.eval()


def masks(net: nn.Module) -> dict[str, Tensor]:
    return {layer: net.get_submodule(f"compression.{layer}.weight_pruner").mask for layer in ("a", "b")}


def expected_zeros(case: Case, n: int) -> int:
    return min(round(case.sparsity * n), n - 1)


@settings(max_examples=60)
@given(cases())
def test_masks_have_exactly_so_many_zeros_and_hold(case: Case) -> None:
    net, average = trained(case)
    for one in (net, average):
        frozen = fxc.freeze(one)
        for layer, mask in masks(one).items():
            weight = one.get_submodule(layer).weight
            full = mask.expand(weight.shape)
            stored = [b for b in frozen.buffers() if b.dtype == torch.int8 and b.shape == weight.shape]
            assert stored and any(not (b * ~full).any() for b in stored), layer
            assert torch.isfinite(weight).all()
    counts_are_right(case, masks(net), net)


def counts_are_right(case: Case, found: dict[str, Tensor], net: Any) -> None:
    entries: list[Tensor] = []
    for layer in ("a", "b"):
        mask = found[layer].expand(net.get_submodule(layer).weight.shape)
        if ":" in case.pattern:
            kept, of_each = map(int, case.pattern.split(":"))
            groups = mask.movedim(1, -1).reshape(-1, of_each)
            assert bool((groups.sum(1) == kept).all())
            continue
        outputs, inputs = map(int, case.pattern.split("x")) if "x" in case.pattern else (1, 1)
        if case.pattern == "channel":
            rows = mask.flatten(1)
            assert bool((rows.all(1) | ~rows.any(1)).all())
            entries.append(rows.any(1))
        else:
            moved = mask.reshape(len(mask) // outputs, outputs, mask.shape[1] // inputs, inputs, -1)
            assert bool((moved == moved[:, :1, :, :1]).all())
            entries.append(moved[:, 0, :, 0].flatten())
    if case.scope == "global":
        together = torch.cat(entries)
        assert int((~together).sum()) == expected_zeros(case, len(together)) and all(e.any() for e in entries)
        return
    for each in entries:
        assert int((~each).sum()) == expected_zeros(case, len(each))
