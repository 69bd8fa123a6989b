"""The zoo's tool: its sample is captured, equal and rewritten; some models go all the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EQUAL = {"equal", "equal, copy equal"}


def zoo(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "zoo", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_sample_is_captured_and_equal(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    zoo("--sample", "--output", str(rows))
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {r["library"] for r in found} == {"hard cases", "torchvision", "timm", "transformers"}
    assert {r["name"]: (r["train"], r["eval"]) for r in found if {r["train"], r["eval"]} - EQUAL} == {}
    assert {r["name"]: r["weights"] for r in found if r["weights"] < 0.99} == {}
    assert {r["name"]: r["edges"] for r in found if r["edges"] < 0.95} == {}
    table = zoo("--table", str(rows))
    assert table.count("\n| ") >= len(found)


@pytest.mark.slow
def test_twenty_models_go_all_the_way() -> None:
    lines = zoo("--cycle").splitlines()[2:]
    assert len(lines) >= 20
    assert [line for line in lines if "| agrees |" not in line] == []
