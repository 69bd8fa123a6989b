"""The tools that measure orders, on a few steps of the task that needs no data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_orders_are_compared_and_searched_and_go_on_where_they_were(tmp_path: Path) -> None:
    command = [sys.executable, "tools/paper/order.py", "--task", "digits", "--steps", "20", "--seeds", "2"]
    command += ["--work", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert "### digits, matched: accuracy, %, 20 steps" in first and "### digits, paper" in first
    assert "| Q(w,f) -> P(w,f) |" in first and (tmp_path / "digits-paper.svg").exists()
    lines = (tmp_path / "digits-matched.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 2
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert again == first and (tmp_path / "digits-matched.jsonl").read_text().splitlines() == lines
    search = subprocess.run([*command, "--search", "2"], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert "searched, on held-out seeds" in search.stdout and "best of 2, tpe minus" in search.stdout
