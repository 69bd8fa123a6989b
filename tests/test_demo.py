"""The demo: what it leaves behind, what it refuses, and that a kill in the middle of a ramp changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fxcompress.demo import Options, run_demo
from fxcompress.demo.data import DemoError, load
from fxcompress.demo.net import DigitsNet
from fxcompress.errors import FxCompressError
from fxcompress.spec import Spec

SPEC = "P0.5(w,f)@10%..90% -> Q8(w,f)@95%"
EPOCHS, BATCH_SIZE = 2, 64
STEPS = 2 * (1347 // BATCH_SIZE)
TIMEOUT = 120


def losses(out: Path, name: str = "compressed") -> list[dict[str, float]]:
    """The steps and losses written so far; a reader never sees a part of the file."""
    file = out / "seed0" / f"{name}.losses.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train_until(out: Path, step: int) -> int:
    """Start the demo as a user does, kill it at the first checkpoint of the compressed net from `step` on; return its step."""
    command = [sys.executable, "-m", "fxcompress.cli", "demo", "--spec", SPEC, "--seeds", "1", "--out", str(out)]
    command += ["--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--checkpoint-every", "3"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + TIMEOUT
    while len(losses(out)) < step and demo.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    demo.send_signal(signal.SIGKILL)
    said = demo.communicate()[0]
    assert demo.returncode == -signal.SIGKILL, said
    return len(losses(out))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_in_the_middle_of_a_ramp_changes_no_loss_and_no_bit(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(train_until, tmp_path / "whole", STEPS)
        killed_at = train_until(tmp_path / "killed", STEPS // 3)
        assert whole.result() == STEPS
    assert STEPS * 0.1 < killed_at < STEPS * 0.9, "the kill came after the ramp"
    assert train_until(tmp_path / "killed", STEPS) == STEPS

    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert losses(tmp_path / "killed", "float") == losses(tmp_path / "whole", "float")
    ends = [checkpoint_of_last_step(tmp_path / run) for run in ("whole", "killed")]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def checkpoint_of_last_step(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "seed0" / "compressed.pt", weights_only=True)
    assert len(state["losses"]) == STEPS
    found: dict[str, torch.Tensor] = state["net"]
    return found


def test_a_small_demo_leaves_every_file_and_sane_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "demo"
    options = Options(epochs=2, seeds=1, seed=3, out=out)
    threads = torch.get_num_threads()
    results = run_demo(options)
    printed = capsys.readouterr()

    top = {"float.onnx", "compressed.onnx", "spec.yaml", "report.txt", "results.json", "settings.json", "seed3"}
    assert {p.name for p in out.iterdir()} == top
    runs = {f"{name}.{kind}" for name in ("float", "compressed") for kind in ("pt", "losses.jsonl", "onnx")}
    assert {p.name for p in (out / "seed3").iterdir()} == runs
    assert torch.get_num_threads() == threads
    assert Spec.load(out / "spec.yaml") == Spec.of(options.spec)
    assert json.loads((out / "results.json").read_text()) == results
    assert "weights and activations" in (out / "report.txt").read_text()
    assert "epoch 2/2" in printed.err
    assert "test accuracy" in printed.out and "masks on activations cost" in printed.out

    (seed,) = results["seeds"]
    assert set(seed["accuracy"]) == {"float", "compressed", "onnxruntime"}
    assert all(50 < value <= 100 for value in seed["accuracy"].values())
    assert seed["masked"] == pytest.approx({"weight": 50, "activation": 50}, abs=1)
    assert all(seed["zeros"][kind] >= seed["masked"][kind] - 0.1 for kind in seed["zeros"])
    assert seed["bytes"]["compressed"] <= 0.4 * seed["bytes"]["float"]
    assert all(value > 0 for value in seed["milliseconds"].values())
    assert seed["agreement"]["largest_step"] <= 1 and not seed["agreement"]["unexplained"]
    assert seed["agreement"]["left_in_float"] == []
    assert seed["masks"]["bytes"] > 0 and 0 < seed["masks"]["time_share"] < 1

    finished = losses_of(out / "seed3")
    run_demo(options)
    assert losses_of(out / "seed3") == finished
    assert "goes on after step 42 of 42" in capsys.readouterr().err
    with pytest.raises(DemoError, match=r"holds a demo with epochs 2, not 5; name another folder"):
        run_demo(Options(epochs=5, seeds=1, seed=3, out=out))
    (out / "seed3" / "compressed.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DemoError, match=r"cannot resume from '.*compressed\.pt'"):
        run_demo(options)


def losses_of(folder: Path) -> list[str]:
    return [(folder / f"{name}.losses.jsonl").read_text() for name in ("float", "compressed")]


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seeds": 0}, {"epochs": 0}, {"batch_size": 1}, {"checkpoint_every": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(DemoError, match=f"--{name.replace('_', '-')} is"):
        Options(**wrong)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="does not fit 1347 training images"):
        run_demo(Options(batch_size=5000, seeds=1, out=tmp_path))


def test_a_spec_that_does_not_fit_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(FxCompressError, match="nothing_here"):
        run_demo(
            Options(
                spec="rules: [{op: prune, target: weight, sparsity: 0.5, match: {name: nothing_here}}]", out=tmp_path
            )
        )
    assert not list((tmp_path / "seed0").iterdir())


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DemoError, match=r"pip install 'fxcompress\[demo\]'"):
        load(0)


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    one, again, other = load(0), load(0), load(1)
    torch.manual_seed(1)
    first = list(one.epoch(3, 64))
    torch.manual_seed(2)
    second = list(again.epoch(3, 64))
    assert len(first) == one.steps(64)
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], next(iter(one.epoch(4, 64)))[0])
    assert not torch.equal(first[0][0], next(iter(other.epoch(3, 64)))[0])


def test_no_image_is_in_both_halves() -> None:
    data = load(0)
    train = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in train for image in data.test_images)
    assert len(data.train_images) + len(data.test_images) == 1797


def test_the_network_is_small_and_finite() -> None:
    torch.manual_seed(0)
    net = DigitsNet().eval()
    assert 100_000 < sum(p.numel() for p in net.parameters()) < 300_000
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert net(torch.rand(2, 1, 8, 8)).isfinite().all()
