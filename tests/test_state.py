"""State that a forward reads or changes besides its inputs: never baked in, never lost."""

from __future__ import annotations

import copy
import functools
import pickle
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Does, assert_follows, rows, twins
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxcompress as fxc
from fxcompress.errors import ExportError, InputError


@dataclass
class Count:
    n: int = 0


def counts_in_an_object(m: Any, x: Tensor) -> Tensor:
    m.state.n += 1
    return m.layer(x) * m.state.n


def appends_in_a_container(m: Any, x: Tensor) -> Tensor:
    m.state["all"].append(1)
    return m.layer(x) * len(m.state["all"])


def counts_in_a_container(m: Any, x: Tensor) -> Tensor:
    m.state[len(m.state)] = 1
    return m.layer(x) * len(m.state)


def queues(m: Any, x: Tensor) -> Tensor:
    m.state.append(1)
    return m.layer(x) * len(m.state)


def writes_to_a_tensor(m: Any, x: Tensor) -> Tensor:
    m.state.mul_(1.5)
    return m.layer(x) * m.state


def asks_for_gradients(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if torch.is_grad_enabled() else x


def recomputes(m: Any, x: Tensor) -> Tensor:
    return checkpoint(m.layer, x, use_reentrant=False)  # type: ignore[no-any-return]


def maps(m: Any, x: Tensor) -> Tensor:
    return torch.vmap(m.layer)(x)


ISLANDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Any, str]] = {
    "object": (counts_in_an_object, Count, "changes 'state'"),
    "container": (appends_in_a_container, lambda: {"all": []}, "changes 'state'"),
    "ordered": (counts_in_a_container, OrderedDict, "changes 'state'"),
    "with defaults": (counts_in_a_container, lambda: defaultdict(int), "changes 'state'"),
    "queue": (queues, lambda: deque([1], 4), "changes 'state'"),
    "tensor": (writes_to_a_tensor, lambda: torch.ones(6), "changes 'state'"),
    "gradients": (asks_for_gradients, int, "asks whether gradients are computed"),
    "checkpoint": (recomputes, int, "recomputes in backward"),
    "vmap": (maps, int, "torch.vmap"),
}


@pytest.mark.parametrize("kind", ISLANDS)
def test_what_a_graph_would_lose_is_an_island(kind: str) -> None:
    forward, state, reason = ISLANDS[kind]
    model = Does(forward, nn.Linear(6, 6))
    model.state = state()
    model, net = twins(model, rows(6))
    assert reason in net.islands[""].reason
    net.state = copy.deepcopy(model.state)
    for _ in range(2):
        assert_follows(model, net, rows(6))


def follows_the_mode(m: Any, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(m.training):
        return m.layer(x)


def test_gradients_that_follow_the_mode() -> None:
    _, net = twins(Does(follows_the_mode, nn.Linear(6, 6)), rows(6))
    for training in (True, False, True):
        assert net.train(training)(rows(6)).requires_grad is training
    assert not net.islands


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.layer(x) * {4: 2.0, 16: 3.0}.get(x.shape[0], 1.0),
        lambda m, x: m.layer(x) if x.shape[0] in {4, 16} else x,
    ],
)
def test_lookups_by_size_are_decisions(forward: Any) -> None:
    model, net = twins(Does(forward, nn.Linear(6, 6)), rows(6))
    assert_follows(model, net, rows(6))
    with pytest.raises(InputError, match=r"x\.shape\[0\] is 4, and now it is 2"):
        net(rows(6)[:2])


def test_graphs_with_computed_slices_pickle() -> None:
    _, net = twins(Halves(), rows(6))
    assert torch.equal(pickle.loads(pickle.dumps(net))(rows(6)), net(rows(6)))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[: x.shape[0] // 2, :: x.dim()]


def test_a_slice_of_a_sequential_is_captured() -> None:
    layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model, net = twins(Does(lambda m, x: m.layer[:2](x), layers), rows(6))
    assert not net.islands
    assert_follows(model, net, rows(6))


def test_numbers_or_tensors_by_position() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.pow(m.layer(x), 2.0) + torch.pow(2.0, x) + torch.where(x > 0, x, 0.0)
        return torch.clamp(y, min=-1.0) + torch.special.xlog1py(1.0, x.abs()) + torch.remainder(x, 0.5)

    model, net = twins(Does(forward, nn.Linear(6, 6)), rows(6))
    assert not net.islands
    assert_follows(model, net, rows(6))


def test_a_cache_keeps_no_symbols_for_later_calls() -> None:
    table = functools.lru_cache(None)(lambda n: torch.arange(n).float()[:, None])
    for _ in range(2):
        model, net = twins(Does(lambda m, x: m.layer(x) + table(x.shape[0]), nn.Linear(6, 6)), rows(6))
        assert not net.islands
        assert_follows(model, net, rows(6))


def test_a_model_that_changes_its_buffers_in_evaluation_is_not_exported(tmp_path: Path) -> None:
    class Decays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("level", torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            self.level.mul_(0.5)
            return self.layer(x) + self.level

    net = fxc.compress(Decays(), "Q8(w)@0", rows(6), total_steps=1)
    with pytest.raises(ExportError, match="changes its own 'level' in evaluation"):
        fxc.export_onnx(net.eval(), tmp_path / "net.onnx")


def test_what_is_computed_from_a_buffer_may_be_written_to(tmp_path: Path) -> None:
    class Bends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = nn.Linear(2, 6), nn.Linear(6, 3)
            self.register_buffer("table", torch.arange(2.0)[None])

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + torch.relu_(self.layer(self.table)))  # type: ignore[no-any-return]

    net = fxc.compress(Bends(), "Q8(w,f)@0", rows(6), total_steps=1)
    assert fxc.export_onnx(net.eval(), tmp_path / "net.onnx").ok
