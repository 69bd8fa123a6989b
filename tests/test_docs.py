"""The docs are true: their Python runs and prints what they show, their tables and schema are the code's, links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LIGHTNING

from fxcompress.fields import Match
from fxcompress.rules import Prune, Quantize, Rule
from fxcompress.spec import Spec

ROOT = Path(__file__).parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced Python block of a file, and what it is said to print."""

    line: int
    code: str
    printed: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks; the `text` block right after one is what it prints."""
    found = list(BLOCK.finditer(text))
    made = []
    for here, after in zip_longest(found, found[1:]):
        follows = after is not None and after[1] == "text" and not text[here.end() : after.start()].strip()
        if here[1] == "python":
            line = text[: here.start()].count("\n") + 2
            made.append(Block(line, here[2], after[2] if follows and after else None))
    return made


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("file", DOCS, ids=lambda f: f.name)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings(*LIGHTNING)
def test_python_blocks_run_and_print_what_is_shown(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks(file.read_text()):
            code = compile("\n" * (block.line - 1) + block.code, str(file), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            if block.printed is not None:
                assert out.getvalue() == block.printed, f"{file.name}, line {block.line}"


@pytest.mark.parametrize("file", DOCS, ids=lambda f: f.name)
def test_links_lead_to_files_and_headings(file: Path) -> None:
    text = BLOCK.sub("", file.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, heading = target.partition("#")
            there = (file.parent / path).resolve() if path else file
            assert there.exists(), target
            assert not heading or heading in _headings(there), target


def test_schema_file_is_that_of_the_spec() -> None:
    assert json.loads((ROOT / "docs" / "spec.schema.json").read_text()) == Spec.json_schema()


@pytest.mark.parametrize(
    ("section", "model", "but"),
    [("Every rule", Prune, ()), ("`op: prune`", Prune, Rule.model_fields), ("`op: quantize`", Quantize, Rule.model_fields),
     ("`match` and `exclude`", Match, ())],
)  # fmt: skip
def test_tables_of_the_spec_reference_are_the_codes(section: str, model: type[Any], but: Any) -> None:
    text = (ROOT / "docs" / "spec.md").read_text().partition(f"### {section}\n")[2].partition("\n#")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    fields = ["op", *Rule.model_fields] if section == "Every rule" else [f for f in model.model_fields if f != "op"]
    assert rows == [_row(model, field) for field in fields if field not in but]


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = [*ROOT.glob("fxcompress/*.py"), *ROOT.glob("passes/*.py")]
    assert [f.name for f in files if f.name != "__init__.py" and f"`{f.name}`" not in text] == []


def test_the_architecture_names_no_module_that_is_not_there() -> None:
    named = re.findall(r"^\| `(\w+\.py)`", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert [n for n in named if not any((ROOT / d / n).exists() for d in ("fxcompress", "passes"))] == []


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_in_the_docs_exist(file: str) -> None:
    named = re.findall(
        r"(?<![\w./])(?:\./)?((?:tools|tests|docs|passes)/[\w./]*\w)(?![\w<])", (ROOT / file).read_text()
    )
    assert [path for path in named if not os.path.exists(ROOT / path)] == []


def _row(model: type[Any], name: str) -> str:
    field = model.model_fields[name]
    allowed, _, meaning = field.description.partition(": ")
    if name == "op":
        return "| `op` | 'prune' or 'quantize' | required | the kind of rule |"
    default = "required" if field.is_required() else "none" if field.default is None else f"`{field.default}`"
    return f"| `{name}` | {allowed} | {default} | {meaning} |"


def _headings(file: Path) -> list[str]:
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]
