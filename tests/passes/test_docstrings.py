"""The Before and After of every pass's docstring are lines that its golden test prints."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from helpers import text

GOLDEN = sorted(path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py"))
GOLDEN.remove("docstrings")


def lines(part: str) -> list[str]:
    """The graph's lines in one part of a docstring, where deeper indentation continues a line."""
    return [" ".join(line.split()) for line in re.split(r"\n {13}(?=\S)", part)]


@pytest.mark.parametrize("name", GOLDEN)
def test_shows_lines_of_its_golden_test(name: str) -> None:
    golden = importlib.import_module(f"test_{name}")
    source = (Path(__file__).parents[2] / "passes" / f"{name}.py").read_text()
    found = re.search(r"    Before:(.*?)\n    After:(.*?)\n\n", source, re.DOTALL)
    assert found is not None
    before, after = map(lines, found.groups())
    assert set(before) <= set(text(golden.BEFORE).splitlines())
    assert set(after) <= set(text(golden.AFTER).splitlines())
    assert before != after
