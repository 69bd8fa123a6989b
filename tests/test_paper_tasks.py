"""The paper's tasks on data made up, a few steps each: trained, pruned, quantized, exported and verified."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fxcompress as fxc

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools" / "paper"))

from classification import Classification  # noqa: E402
from paper_parts.arms import KINDS, arms_of, specs_of  # noqa: E402
from paper_parts.captured import CapturedSteps  # noqa: E402
from paper_parts.task import Setting  # noqa: E402
from paper_parts.tasks import TASKS  # noqa: E402
from paper_parts.training import Training  # noqa: E402
from super_resolution import SuperResolution  # noqa: E402

FILES = {
    "classification": "classification.py", "detection": "detection.py", "super-resolution": "super_resolution.py",
    "pix2pix": "pix2pix.py", "cyclegan": "cyclegan.py",
}  # fmt: skip


def command(task: str, work: Path, *more: str) -> list[str]:
    return [sys.executable, f"tools/paper/{FILES[task]}", "--budget", "smoke", "--work", str(work), *more]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_spec_files_are_those_of_the_paper() -> None:
    for name, task in TASKS.items():
        for kind, arms in specs_of(name, task.batch, task.dense).items():
            files = arms_of(name, kind)
            assert list(files) == ["float", *arms]
            for arm, spec in arms.items():
                assert fxc.Spec.load(files[arm]) == spec, (name, kind, arm, "run tools/paper/write_specs.py")
    assert KINDS == ("paper", "matched")


@pytest.mark.parametrize(
    ("task", "kind"),
    [("super-resolution", "paper"), ("pix2pix", "matched"), ("cyclegan", "paper"), ("detection", "paper")],
)
def test_an_arm_ends_with_files_that_a_runtime_agrees_with(task: str, kind: str, tmp_path: Path) -> None:
    arm = "P(w,f) -> Q(w,f)"
    done = run(command(task, tmp_path, "--kind", kind, "--arm", arm))
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = [json.loads(line) for line in (tmp_path / f"{task}-smoke.jsonl").read_text().splitlines()]
    assert record["verified"] and record["arm"] == arm
    assert record["file_bytes"] < record["float_file_bytes"] and record["latency_ms"] > 0 and record["megabits"] > 0
    assert f"### {task}, {'matched' if kind == 'matched' else 'at the paper'}" in done.stdout
    if "in_runtime" in record:
        name = next(iter(record["metrics"]))
        assert record["in_runtime"][name] == pytest.approx(record["metrics"][name], rel=0.02, abs=0.02)


def test_a_training_that_was_cut_off_goes_on_to_the_bit(tmp_path: Path) -> None:
    task, spec = SuperResolution(Setting("smoke")), arms_of("super-resolution", "paper")["P(w) -> Q(w,f)"]
    whole, pieces = (
        partial(Training, task, spec, "paper", 0, tmp_path / name, torch.device("cpu")) for name in ("a.pt", "b.pt")
    )
    once = whole()
    assert once.until(float("inf"))
    ends, piece = [], None
    while not ends or not ends[-1]:
        piece = pieces()
        ends.append(piece.until(0.0))
    assert ends == [False] * (task.total_steps - 1) + [True]
    state, wanted = (t.parts.nets["espcn"].state_dict() for t in (piece, once))
    assert state.keys() == wanted.keys() and all(torch.equal(state[k], wanted[k]) for k in wanted)
    assert piece.rates == once.rates and piece.digest == once.digest


class Repeated(CapturedSteps):
    """Steps that a CPU takes again where a GPU replays them."""

    replays = 0

    def _capture(self, batch: Sequence[Tensor]) -> None:
        self.batch, self.graph = [t.clone() for t in batch], self  # type: ignore[assignment]

    def replay(self) -> None:
        self.replays += 1
        self.optimizer.zero_grad()
        self.task.loss(self.parts, *self.batch).backward()


def test_captured_steps_are_those_of_the_task(tmp_path: Path) -> None:
    task, spec = Classification(Setting("smoke")), tmp_path / "spec.json"
    spec.write_text(json.dumps(fxc.Spec.of("P0.5(w)@2 -> Q8(w)@4").to_dict()))
    found = []
    for is_captured in (False, True):
        training = Training(task, spec, "paper", 0, tmp_path / f"{is_captured}.pt", torch.device("cpu"))
        if is_captured:
            training.captured = Repeated(task, training.parts)
        assert training.until(math.inf)
        found.append([p.detach() for p in training.parts.nets["mobilenet_v2"].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert isinstance(training.captured, Repeated) and 0 < training.captured.replays < task.total_steps


def test_a_command_that_is_out_of_time_says_so_and_goes_on(tmp_path: Path) -> None:
    words = command("super-resolution", tmp_path, "--arm", "float", "--kind", "paper")
    first = run([*words, "--minutes", "0"])
    assert (first.returncode, first.stdout) == (3, "out of time in 'float' (paper, seed 0); call again to go on\n")
    assert run(words).returncode == 0 and not list(tmp_path.glob("*.pt"))


def test_real_images_need_a_feature_network_for_fid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name an ONNX file with --features"):
        TASKS["pix2pix"](Setting("cpu", tmp_path))
