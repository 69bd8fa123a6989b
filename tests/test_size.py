"""Limits that keep a file and a function readable in one go."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("fxcompress/*.py"), *ROOT.glob("passes/*.py")])
FILE_LIMIT = 300
FUNCTION_LIMIT = 60


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_file_and_its_functions_are_short(file: Path) -> None:
    text = file.read_text()
    lines = len(text.splitlines())
    assert lines <= FILE_LIMIT
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {f.name: _lines(f) for f in functions if _lines(f) > FUNCTION_LIMIT} == {}


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    first, last = function.body[0], function.end_lineno or function.lineno
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return last - function.lineno + 1 - docstring
