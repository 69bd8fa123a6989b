"""The paper's tasks on data made up, a few steps each: trained, pruned, quantized, exported and verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fxcompress as fxc

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools" / "paper"))

from paper_parts.arms import KINDS, arms_of, specs_of  # noqa: E402
from paper_parts.tasks import TASKS  # noqa: E402

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
    arm = ("--arm", "P(w) -> Q(w,f)", "--kind", "paper", "--seed", "0", "1")
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    once = run(command("classification", whole, *arm))
    assert once.returncode == 0, once.stderr[-2000:]
    codes = []
    while not codes or codes[-1] == 3:
        codes.append(run(command("classification", pieces, *arm, "--minutes", "0.01")).returncode)
        assert len(codes) < 40
    assert len(codes) > 2 and codes[-1] == 0
    found = [
        [json.loads(line)["metrics"] for line in (work / "classification-smoke.jsonl").read_text().splitlines()]
        for work in (whole, pieces)
    ]
    assert len(found[0]) == 2 and found[0] == found[1]


def test_real_images_need_a_feature_network_for_fid(tmp_path: Path) -> None:
    done = run(command("pix2pix", tmp_path, "--data-root", str(tmp_path)))
    assert done.returncode == 2 and "name an ONNX file with --features" in done.stderr
