"""What users may rely on, and which way imports run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import fxcompress
from fxcompress import errors

ROOT = Path(__file__).parent.parent
PUBLIC = [
    "CompressedModule", "Prune", "Quantize", "Space", "Spec", "at_once", "calibrate", "compare", "compress",
    "export_onnx", "freeze", "held_rate", "keep_masks", "kept_masks", "load", "log_curves", "matched_arms",
    "paper_arms", "paper_choices", "report", "save", "search", "shrink", "use_masks", "verify", "write_report",
]  # fmt: skip
LEAVES = [
    "capture", "errors", "graph", "grid", "module", "notation", "operators", "pipeline", "pruner", "quantizer",
    "ranges", "render", "sites", "spec", "timing",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    names = [n for n, v in vars(fxcompress).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
    assert sorted(names) == PUBLIC


def test_every_error_derives_from_one() -> None:
    raised = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, BaseException)]
    assert raised and all(issubclass(error, errors.FxCompressError) for error in raised)
    drawn = errors.__doc__ or ""
    assert [e.__name__ for e in raised if e.__name__ not in drawn] == []


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_neither_passes_nor_the_api(leaf: str) -> None:
    reached, pending = set[str](), [f"fxcompress.{leaf}"]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += IMPORTS[name]
    assert [name for name in reached if name.startswith(("fxcompress.passes", "fxcompress.api"))] == []


def test_imports_have_no_cycle() -> None:
    assert set(TopologicalSorter(IMPORTS).static_order()) >= set(IMPORTS)  # raises CycleError


def _imports(file: Path, modules: set[str]) -> set[str]:
    """The library's modules that a file imports, inside functions too, but not for type checkers only."""
    named = set[str]()
    for node in _executed(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            named |= inner or {node.module}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return named & modules


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types:
            yield node
            yield from _executed(node)


def _modules() -> dict[str, Path]:
    engine = {f"fxcompress.{f.stem}": f for f in ROOT.glob("fxcompress/*.py") if f.stem != "__init__"}
    passes = {f"fxcompress.passes.{f.stem}": f for f in ROOT.glob("passes/*.py") if f.stem != "__init__"}
    return {**engine, **passes, "fxcompress.passes": ROOT / "passes" / "__init__.py"}


MODULES = _modules()
IMPORTS = {name: _imports(file, set(MODULES)) for name, file in MODULES.items()}
