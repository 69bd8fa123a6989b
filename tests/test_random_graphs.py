"""Contracts 5, 6, 8 and 9 on random networks with random specs: trained a few steps, exported, and the runtime agrees.

`pytest tests/test_random_graphs.py --graphs 2000` runs as many.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import HERE
from random_graphs import random_model, random_spec

import fxcompress as fxc

STEPS = 6


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--graphs")))


def test_the_runtime_computes_what_was_trained(seed: int, tmp_path: Path) -> None:
    model, x = random_model(seed)
    spec = random_spec(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    net = fxc.compress(model, spec, x, total_steps=STEPS, optimizer=optimizer, target=HERE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = net(torch.randn_like(x)).square().mean()
        assert bool(loss.isfinite())
        loss.backward()
        optimizer.step()
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx", x)
    assert found.ok, f"{spec}\n{found}"
    frozen, trained = fxc.freeze(net)(x), net(x)
    assert bool(frozen.isfinite().all() and trained.isfinite().all())
