"""What the tests of passes share: tiny models, nets at every stage, and the golden-test check."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import random
from collections.abc import Callable, Iterable, Mapping
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxcompress as fxc
from fxcompress.api import captured_net
from fxcompress.calls import bind
from fxcompress.capture import capture
from fxcompress.frozen import evaluation_copy
from fxcompress.module import CompressedModule
from fxcompress.pipeline import Pass, run
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.render import render
from fxcompress.runtime import saturates

HERE = "onnxruntime-avx2" if saturates() else "onnxruntime"
"""The target for weights that are used twice, which ONNX Runtime has no exact kernels for on some processors."""
LIGHTNING = (
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning",  # its own use of torch
    "ignore:The 'train_dataloader' does not have many workers",  # data in memory needs none
)
"""Filters for the warnings that Lightning raises whatever its user does."""


class Fc(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Does(nn.Module):
    """A layer and what is done with it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.does = layer or nn.Identity(), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


class ConvBnRelu(nn.Module):
    """One unit of three modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class ConvBnConv(nn.Module):
    """Two convolutions with a batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(x)))


class Residual(nn.Module):
    """A convolution, in place added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x)


class Cat(nn.Module):
    """Two convolutions side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 2, 1, bias=False)
        self.b = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


class Shared(nn.Module):
    """One linear layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.fc(x)))


class Mlp(nn.Module):
    """Two linear layers with an activation and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout()
        self.fc2 = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.relu(self.fc1(x))))


def image(channels: int = 3, size: int = 4) -> Tensor:
    """A batch of two images, the same at every call."""
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def rows(features: int = 3) -> Tensor:
    """A batch of four rows, the same at every call."""
    return torch.randn(4, features, generator=torch.Generator().manual_seed(1))


def seeded(make: type[nn.Module]) -> Any:
    """A model whose weights are the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def captured(model: nn.Module, example: Any) -> Any:
    """The model as captured, with shapes, before any pass."""
    inputs = bind(model, example)
    return CompressedModule(capture(model, inputs), type(model).__name__)


def canonical(model: nn.Module, example: Any) -> Any:
    """The model as the passes that insert take it."""
    return captured_net(model, bind(model, example))


def trained(model: nn.Module, spec: Any, example: Any, target: str = "onnxruntime") -> Any:
    """The model compressed by `spec`, past all its events, in evaluation mode."""
    net = fxc.compress(model, spec, example, total_steps=4, target=target)
    for _ in range(4):
        net(example)
        net.schedule.step()
    return net.eval()


def after(passes: Iterable[Pass], net: CompressedModule) -> GraphModule:
    """A copy of `net` for evaluation, as `passes` leave it."""
    gm = evaluation_copy(net)
    run(gm, passes)
    return gm


def enable(net: nn.Module) -> None:
    """Switch all pruners and quantizers on, as they are."""
    for module in net.modules():
        if isinstance(module, Pruner):
            module.prune(0.0, module.mask.float())
        elif isinstance(module, Quantizer):
            module.enable()


def constants(gm: GraphModule, prefix: str) -> dict[str, Tensor]:
    """The buffers of `gm` under a path, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): t for name, t in gm.named_buffers() if name.startswith(f"{prefix}.")}


def check_pass(gm: GraphModule, pass_: Pass, *, before: str, after: str, example: Any, tolerance: float = 0.0) -> None:
    """Check one rewrite of `gm`: text before, that it says it changed, text after, outputs, second run, deep copy.

    A net that trains must keep its outputs in both modes, given the same random state; a frozen graph has one mode.
    """
    assert render(gm) == text(before)
    expected = outputs(gm, example)
    assert run(gm, [pass_]) is True
    assert render(gm) == text(after)
    for mode, output in outputs(gm, example).items():
        torch.testing.assert_close(output, expected[mode], rtol=0, atol=tolerance)
    assert run(gm, [pass_]) is False
    assert render(copy.deepcopy(gm)) == text(after)


def check_unchanged(gm: GraphModule, pass_: Pass, same: str) -> None:
    """Check that the pass leaves `gm` alone and says so."""
    assert render(gm) == text(same)
    assert run(gm, [pass_]) is False
    assert render(gm) == text(same)


def outputs(gm: GraphModule, example: Any) -> Mapping[bool, Any]:
    """Outputs by mode, each from the same random state and the same buffers."""
    found = {}
    for training in (False, True) if isinstance(gm, CompressedModule) else (False,):
        twin = copy.deepcopy(gm).train(training)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found[training] = twin(copy.deepcopy(example))
    return found


def twins(model: nn.Module, example: Any, spec: Any = "P0.5(w) -> Q8(w,f)") -> tuple[Any, Any]:
    """A copy of the model, and the model compressed, long before any event."""
    original = copy.deepcopy(model)
    return original, fxc.compress(model, spec, example, total_steps=100)


def copies(net: Any) -> list[Any]:
    """The net itself, a deep copy and what comes back from a pickle."""
    return [net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))]


def assert_follows(model: nn.Module, net: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Check that the net does as the model does through three switches of the mode."""
    for mode in (True, False, True, False):
        assert_same(model.train(mode), net.train(mode), *args, **kwargs)


def assert_same(model: nn.Module, net: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Check one call: outputs, gradients, buffers, what is written to the arguments and random states, bit for bit."""
    expected, found = _called(model, args, kwargs), _called(net, args, kwargs)
    assert [*expected] == [*found]
    assert [what for what, value in expected.items() if not _identical(value, found[what])] == []
    theirs = dict(net.named_buffers())
    assert [name for name, b in model.named_buffers() if not torch.equal(b, theirs[name])] == []


def _called(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """What one call leaves, from one fixed random state, by what it is."""
    torch.manual_seed(7)
    random.seed(7)
    args, kwargs = copy.deepcopy((args, kwargs))
    model.zero_grad()
    values = flat(model(*args, **kwargs))
    losses = [t.sum() for t in values if isinstance(t, Tensor) and t.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
    given = [*flat(args), *flat(kwargs)]
    return {
        **{f"output {i}": value for i, value in enumerate(values)},
        **{f"argument {i}": value for i, value in enumerate(given)},
        **{f"gradient of argument {i}": value.grad for i, value in enumerate(given) if isinstance(value, Tensor)},
        **{f"gradient of {name}": p.grad for name, p in model.named_parameters()},
        "torch's random state": torch.get_rng_state(),
        "Python's random state": random.getstate(),
    }


def _identical(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    return torch.equal(a, b) and (type(a), a.dtype, a.requires_grad) == (type(b), b.dtype, b.requires_grad)


def flat(value: Any) -> list[Any]:
    """What nested containers hold, with their types and keys."""
    if isinstance(value, Mapping):
        items: list[Any] = [*value.items()]
    elif isinstance(value, (tuple, list)):
        items = [*enumerate(value)]
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    else:
        return [value]
    return [type(value), *(part for key, item in items for part in (key, *flat(item)))]


def text(literal: str) -> str:
    """A graph's text as it stands in a test, without the indentation."""
    return dedent(literal).strip()
