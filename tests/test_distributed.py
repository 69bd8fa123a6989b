"""Several ranks train as one process on all of their batches: masks, scales, losses; checkpoints, restarts, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributing
import pytest
import torch
import torch.distributed as dist
from distributing import BATCH, HALF, SPECS, STEPS, Run, batch, observed
from helpers import ConvBnConv, image
from torch import nn

import fxcompress as fxc
from fxcompress.frozen import freeze
from fxcompress.observer import Observer
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.render import render

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
HERE = Path(__file__).parent
SAME = 1e-5  # relative: sums in another order
WITH_FLIPS = 0.02  # relative to the largest: a bias that rounds to the other side moves outputs by a step of the sums
NOT_AS_ONE = {"averages", "drawn", "at once"}
"""Specs whose masks or scales are equal on all ranks, but those of one process for other reasons than sums."""


def launch(folder: Path, tasks: str, ranks: int, *options: str) -> None:
    """Run tasks of tests/distributing.py on so many ranks."""
    # After a restart, torch 2.14 would meet at the addresses of the ranks that died, in a store that outlived them.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", **own_store}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{ranks}", *options]
    done = subprocess.run(
        [*command, str(HERE / "distributing.py"), str(folder), tasks],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def notes(folder: Path, name: str, ranks: int = 2) -> list[Any]:
    """What each rank noted."""
    return [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(ranks)]


def differing(found: Any, other: Any) -> list[str]:
    """The names under which two states are not equal bit for bit."""
    assert [*found["state"]] == [*other["state"]]
    return [name for name, value in found["state"].items() if not torch.equal(value, other["state"][name])]


def far_apart(found: Any, other: Any, flips: bool = False) -> list[str]:
    """What differs by more than the order of sums: any mask or flag, scales and losses beyond a tolerance. Where scales
    are learned, biases are rounded to other steps each time, and some may flip (`flips`)."""
    far = []
    for name, value in found["state"].items():
        there = other["state"][name]
        if name.endswith(("magnitude", "sensitivity", "histogram", "low", "high", "reach")):
            continue  # what is left in an observer after its event
        if flips and value.is_floating_point():
            apart = (value - there).abs().max() if value.numel() else torch.tensor(0.0)
            far += [] if apart <= WITH_FLIPS * there.abs().max() else [name]
            continue
        tiny = 1e-8 if name.endswith("scale") else 1e-4  # one rounding to a grid that flips moves weights a little
        close = torch.equal(value, there) if not value.is_floating_point() else torch.allclose(value, there, SAME, tiny)
        far += [] if close else [name]
    pairs = enumerate(zip(found["losses"], other["losses"], strict=True))
    losses = [i for i, (a, b) in pairs if not near(a, b, WITH_FLIPS if flips else SAME)]
    return [*far, *(f"loss {i}" for i in losses)]


def near(a: float, b: float, within: float = SAME) -> bool:
    return abs(a - b) <= within * abs(b)


def assert_as_one(folder: Path, how: str, specs: Any, ranks: int = 2) -> None:
    """Check that all ranks hold the same, and what one process finds on the joined batches."""
    for spec in specs:
        first, *others = notes(folder, f"{how} {spec}", ranks)
        assert [differing(first, other) for other in others] == [[]] * (ranks - 1), spec
        if spec not in NOT_AS_ONE:
            assert far_apart(first, Run(spec).train().found(), flips=spec == "learned") == [], spec


def test_ranks_of_ddp_train_as_one_process(tmp_path: Path) -> None:
    launch(tmp_path, "ddp,counts", 2)
    assert_as_one(tmp_path, "ddp", SPECS)
    [masks] = [{k: v for k, v in n["state"].items() if k.endswith(".mask")} for n in notes(tmp_path, "ddp drawn")[:1]]
    assert all(int((~mask).sum()) == mask.numel() // 2 for mask in masks.values())
    for found in notes(tmp_path, "counts"):
        events, per_step = found["events"], found["per step"]
        # The first step has the ranks meet, others without events need nothing: agree, bounds, sums, what is chosen.
        assert [step for step, n in enumerate(per_step, start=1) if n] == sorted({1, *events})
        assert max(per_step[1:]) <= 5


def test_parameters_split_over_ranks_train_as_whole_ones(tmp_path: Path) -> None:
    launch(tmp_path, "fsdp", 2)
    assert_as_one(tmp_path, "fsdp", ("joint", "gradients", "channels", "rewound", "histograms"))
    assert_as_one(tmp_path, "blocks", ("joint",))
    for what in ("sharded", "report", "export"):
        assert all("gather the state with get_model_state_dict" in why for why in notes(tmp_path, what)), what
    assert all("call fully_shard(net) after its parts" in why for why in notes(tmp_path, "parts"))


def test_a_training_resumes_within_windows_and_what_cannot_go_right_is_refused(tmp_path: Path) -> None:
    launch(tmp_path, "resume,seen,calibrated,refusals", 2)
    for spec in ("joint", "histograms", "averages", "gradients"):
        for whole, resumed in zip(notes(tmp_path, f"whole {spec}"), notes(tmp_path, f"resumed {spec}"), strict=True):
            assert differing(whole, resumed) == [], spec
            assert whole["losses"][HALF:] == resumed["losses"]
            # What was put together for the state counts once.
            assert spec == "averages" or far_apart(whole, Run(spec).train().found()) == [], spec
    assert_one_observer_saw_as_much(notes(tmp_path, "seen"))
    assert_calibrated_as_one(notes(tmp_path, "calibrated"))
    assert all("pass broadcast_buffers=False" in why for why in notes(tmp_path, "around"))
    assert all("the ranks do not train the same net" in why for why in notes(tmp_path, "different"))
    assert notes(tmp_path, "own") == [{"calls": [], "pending": 0}] * 2


def assert_one_observer_saw_as_much(ranks: list[Any]) -> None:
    first, second = ranks
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    parts = [observed(rank) for rank in range(2)]
    joined = torch.cat(parts)
    for name in ("min-max", "mse"):
        observer = Observer(name)
        observer(joined)
        assert all(torch.equal(value, first[f"{name} {key}"]) for key, value in observer.named_buffers())
    torch.testing.assert_close(first["moving-average low"], torch.stack([p.min() for p in parts]).mean())
    assert torch.equal(first["unseen low"], parts[0].min()) and torch.equal(first["unseen high"], parts[0].max())
    torch.testing.assert_close(first["magnitude"], joined[:, :4].abs().sum(0))
    torch.testing.assert_close(first["sensitivity"], torch.stack([p[0, :4] for p in parts]).mean(0))


def assert_calibrated_as_one(ranks: list[Any]) -> None:
    assert differing(*ranks) == []
    run = Run("calibrated")
    fxc.calibrate(run.net, [batch(step)[0] for step in range(3)], correct_bias=True)
    assert far_apart(ranks[0], run.found()) == []
    assert not torch.equal(ranks[0]["state"]["head.bias"], Run("calibrated").net.head.bias)


def test_a_distributed_checkpoint_is_read_in_each_way(tmp_path: Path) -> None:
    launch(tmp_path, "dcp_save,dcp_load", 2)
    assert_gone_on(tmp_path, 2)


@pytest.mark.slow
def test_a_checkpoint_of_four_ranks_is_gone_on_with_by_two(tmp_path: Path) -> None:
    launch(tmp_path, "dcp_save", 4)
    launch(tmp_path, "dcp_load", 2)
    assert_gone_on(tmp_path, 4)


def assert_gone_on(folder: Path, ranks: int) -> None:
    """Check what two ranks read of a checkpoint by so many, and where they ended."""
    for how in ("fsdp", "ddp"):
        saved, *others = notes(folder, f"saved {how}", ranks)
        assert [differing(saved, other) for other in others] == [[]] * (ranks - 1)
        whole = notes(folder, f"whole {how}", ranks)[0]
        for way in ("set", "load", "train"):
            for read in notes(folder, f"read {how} {way}"):
                assert differing(saved, read) == [], way
                assert 0 < sum(read["enabled"]) < len(read["enabled"]) and any(read["observing"])
            for resumed in notes(folder, f"resumed {how} {way}"):
                assert far_apart({**whole, "losses": whole["losses"][HALF:]}, resumed) == [], way


@pytest.mark.slow
def test_a_rank_is_killed_and_all_start_again(tmp_path: Path) -> None:
    launch(tmp_path, "elastic", 2, "--max-restarts", "1")
    for restarted, whole in zip(notes(tmp_path, "restarted"), notes(tmp_path, "whole"), strict=True):
        assert 0 < len(restarted["losses"]) < STEPS  # only what came after the checkpoint
        assert differing(restarted, whole) == []
        assert restarted["losses"] == whole["losses"][-len(restarted["losses"]) :]


@pytest.mark.slow
def test_four_ranks_train_as_one_process(tmp_path: Path) -> None:
    launch(tmp_path, "ddp,fsdp", 4)
    assert_as_one(tmp_path, "ddp", SPECS, 4)
    assert_as_one(tmp_path, "fsdp", ("joint", "gradients", "channels", "rewound", "histograms"), 4)


def test_one_process_calls_no_collective() -> None:
    with distributing.counted() as calls:
        Run("joint").train()
    assert calls == []


def test_every_rank_has_a_part_of_each_batch() -> None:
    assert len(batch(0)[0]) == BATCH and BATCH % 4 == 0


def test_a_state_written_from_outside_is_read_by_train() -> None:
    run, other = Run("joint").train(HALF), Run("joint", seed=1)
    for name, value in other.net.state_dict().items():
        value.copy_(run.net.state_dict()[name])
    assert other.net.schedule.steps == 0
    other.net.train()
    assert other.net.schedule.steps == HALF
    pairs = zip(other.net.modules(), run.net.modules(), strict=True)
    kept = [(a, b) for a, b in pairs if isinstance(a, (Pruner, Quantizer))]
    assert all((a.is_enabled, a.observing) == (b.is_enabled, b.observing) for a, b in kept)
    assert any(a.observing for a, _ in kept)


@pytest.mark.parametrize(
    "spec", ["Q8(w,f)", {"rules": [{"op": "prune", "target": "weight", "sparsity": 0.5, "pattern": "channel"}]}]
)
def test_synchronized_batch_norms_are_batch_norms(spec: Any) -> None:
    plain = ConvBnConv()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(ConvBnConv())
    model.load_state_dict(plain.state_dict())
    nets = [fxc.compress(m, spec, image(), total_steps=4) for m in (plain, model)]
    assert render(nets[1]).replace("SyncBatchNorm", "BatchNorm2d") == render(nets[0])
    if spec == "Q8(w,f)":
        for net in nets:
            fxc.calibrate(net, [image()])
        frozen = [freeze(net) for net in nets]
        assert "BatchNorm" not in render(frozen[1]) and render(frozen[0]) == render(frozen[1])
        assert torch.equal(*(gm(image()) for gm in frozen))


def test_a_wider_histogram_counts_the_same() -> None:
    grown, wide = Observer("mse"), Observer("mse")
    near, far = torch.linspace(-0.4, 0.7, 50), torch.tensor([5.0])
    grown(near)
    grown.widen(torch.tensor(3.0))
    wide(torch.cat([near, far]))
    assert torch.equal(grown.reach, wide.reach)
    wide.histogram[wide.histogram.nonzero().max()] -= 1
    assert torch.equal(grown.histogram, wide.histogram)
