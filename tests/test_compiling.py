"""Compiled nets: one graph without breaks, one more after each step that changes something, eager's losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fxcompress as fxc
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

pytestmark = pytest.mark.filterwarnings("ignore")  # compilers have many
STEPS = 20
BOTH = ["weight", "activation"]


class Net(nn.Module):
    """Convolutions, batch norm, a shortcut, and functions with and without weights between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.first(x)))
        x = F.relu6(self.second(x)) + x
        return self.last(F.dropout(x.mean((2, 3)), 0.0, self.training))


def quantize(**more: Any) -> dict[str, Any]:
    return {"op": "quantize", "target": BOTH, "bits": 8, **more}


def prune(**more: Any) -> dict[str, Any]:
    return {"op": "prune", "target": "weight", "sparsity": 0.5, **more}


SPECS: dict[str, Any] = {
    "notation": "P0.5(w,f) -> Q8(w,f)",
    "learned": {"rules": [quantize(scale="learned")]},
    "mse": {"rules": [quantize(range="mse")]},
    "dense": {"rules": [prune(gradient="dense"), quantize()]},
    "channels": {"rules": [prune(pattern="channel"), quantize()]},
    "movement": {"rules": [prune(criterion="movement"), quantize(target="weight", recalibrate=True)]},
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def losses(spec: Any, backend: str | None) -> tuple[list[float], set[Any]]:
    """Losses of a whole schedule, and the states of what was on, off or observing."""
    torch.manual_seed(0)
    model, example = Net(), torch.randn(8, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    net = fxc.compress(model, spec, example, total_steps=STEPS, optimizer=optimizer)
    run: Any = torch.compile(net, backend=backend, fullgraph=True) if backend else net
    found, states = list[float](), set[Any]()
    for _ in range(STEPS):
        states.add(tuple(m.flags for m in net.modules() if isinstance(m, (Pruner, Quantizer))))
        optimizer.zero_grad()
        loss = F.cross_entropy(run(torch.randn(8, 3, 8, 8)), torch.randint(0, 4, (8,)))
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found, states


def assert_agree(spec: Any, backend: str, tolerance: float = 1e-4) -> None:
    """Check losses against eager's, and that there is a graph for each state."""
    expected, states = losses(spec, None)
    found, _ = losses(spec, backend)
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) < tolerance
    assert not counters["graph_break"]
    assert 1 < counters["stats"]["unique_graphs"] == len(states)


def test_a_schedule_is_one_graph_a_change() -> None:
    assert_agree(SPECS["notation"], "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_rule_compiles(name: str) -> None:
    assert_agree(SPECS[name], "aot_eager")


@pytest.mark.slow
def test_inductor_trains_alike() -> None:
    # Its kernels add in another order; one rounding that falls to the other side shows.
    assert_agree(SPECS["notation"], "inductor", 1e-3)


def test_more_changes_than_a_compiler_likes() -> None:
    count = torch._dynamo.config.recompile_limit + 4
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))
    rules = [quantize(target="weight", start=i + 1, match={"name": str(i)}) for i in range(count)]
    net = fxc.compress(model, {"rules": rules}, torch.randn(2, 4), total_steps=count + 2)
    run = torch.compile(net, backend="eager", fullgraph=True)
    for _ in range(count + 2):
        run(torch.randn(2, 4)).sum().backward()
        net.schedule.step()
    assert counters["stats"]["unique_graphs"] == count + 1


def test_new_inputs_and_counters_recompile_nothing() -> None:
    net = fxc.compress(Net(), "Q8(w,f)@100%", torch.randn(8, 3, 8, 8), total_steps=1000)
    run = torch.compile(net, backend="eager", fullgraph=True)
    for _ in range(4):
        run(torch.randn(8, 3, 8, 8)).sum().backward()
        net.schedule.step()
    assert counters["stats"]["unique_graphs"] == 1


def test_arguments_that_are_one_tensor_are_told_apart_from_two() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + 2 * y

    a, b = torch.randn(3), torch.randn(3)
    net = fxc.compress(nn.Sequential(nn.Linear(3, 3)), "Q8(w)", torch.randn(2, 3), total_steps=4)
    assert net is not None
    run = torch.compile(fxc.compress(Two(), "Q8(f)", (a, b), total_steps=4), backend="eager", fullgraph=True)
    assert torch.equal(run(a, b), a + 2 * b)
    assert torch.equal(run(b, a), b + 2 * a)
