"""The command line: help, plans, the schema, and errors without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import Residual, train

import fxcompress as fxc
from fxcompress import cli
from fxcompress.spec import Spec


def run(*arguments: str) -> int:
    return cli.main(arguments)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    out = capsys.readouterr().out
    assert all(f"  {command.name} " in out for command in cli.COMMANDS)


def test_demo_help_documents_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("demo", "--help")
    out = capsys.readouterr().out
    for option in ("--spec", "--seed", "--seeds", "--epochs", "--batch-size", "--checkpoint-every", "--out"):
        assert option in out
    assert "P0.5(w,f) -> Q8(w,f)" in out


def test_schema_is_the_spec_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == Spec.json_schema()


def test_plan_prints_the_steps_of_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "P0.5(w)@40%..64% -> Q8(w)@92%", "--steps", "100") == 0
    out = capsys.readouterr().out
    assert "40, 48, 56, 64" in out
    assert "50.0 %" in out
    assert "8 bits" in out


def test_plan_reads_a_file_and_needs_no_steps_where_the_spec_says_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("rules: [{op: quantize, target: weight, bits: 4, start: 17}]")
    assert run("plan", str(file)) == 0
    out = capsys.readouterr().out
    assert "17" in out and "4 bits" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "P1.5(w)", "--steps", "9"), "'sparsity' is 1.5"),
        (("plan", "P0.5(w)"), "pass total_steps="),
        (("plan", "P0.5(w)", "--steps", "0"), "total_steps is 0"),
        (("plan", "nowhere.yaml", "--steps", "9"), "cannot read 'nowhere.yaml'"),
        (("demo", "--epochs", "0"), "--epochs is 0; it must be 1 or more"),
    ],
)
def test_an_error_is_one_line_and_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and message in said.err
    assert said.err.count("\n") == 1


def test_notation_errors_keep_the_lines_that_point_at_the_character(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "P0.5(w,f -> Q8", "--steps", "9") == 2
    error, text, pointer, *_ = capsys.readouterr().err.splitlines()
    assert error.startswith("error: notation, column 10")
    assert text[pointer.index("^")] == "-"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a net as `save` writes it, its ONNX file and one of another net's weights."""
    folder = tmp_path_factory.mktemp("verify")
    torch.manual_seed(0)
    net = fxc.compress(Residual(), "Q8(w,f)", torch.randn(4, 3, 8, 8), total_steps=10)
    train(net, 10, (4, 3, 8, 8))
    fxc.save(net, folder / "net.fxc")
    fxc.export_onnx(net, folder / "net.onnx")
    with torch.no_grad():
        net.get_parameter("fc.weight").neg_()
    fxc.export_onnx(net, folder / "other.onnx")
    return folder


def verify(folder: Path, file: str, *options: str, model: str = "models:Residual") -> int:
    return run("verify", model, str(folder / "net.fxc"), str(folder / file), *options)


def test_verify_returns_0_for_a_file_that_agrees(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(exported, "net.onnx") == 0
    out = capsys.readouterr().out
    assert "ok: ONNX Runtime agrees with the frozen graph" in out and "not ok" not in out


def test_verify_returns_1_for_a_file_that_does_not_and_names_where(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert verify(exported, "other.onnx", "--html", str(page)) == 1
    out = capsys.readouterr().out
    assert "not ok" in out and "first difference: 'fc' (fc.quantized)" in out
    assert "fc.quantized" in page.read_text()


def test_verify_takes_inputs_from_npz_and_pt(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(7, 3, 8, 8)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    torch.save({"x": x}, tmp_path / "x.pt")
    for name in ("x.npz", "x.pt"):
        page = tmp_path / f"{name}.html"
        assert verify(exported, "net.onnx", "--inputs", str(tmp_path / name), "--html", str(page)) == 0
        assert f">{7 * 3 * 8 * 8}</td>" in page.read_text()  # elements of x
    assert "error" not in capsys.readouterr().err


def model_that_fails() -> None:
    raise KeyError("no weights")


@pytest.mark.parametrize(
    ("file", "model", "options", "message"),
    [
        ("net.onnx", "Residual", (), "'Residual' names no function; write module:function"),
        ("net.onnx", "nowhere:Residual", (), "'nowhere:Residual' gives no model: ModuleNotFoundError"),
        ("net.onnx", "test_cli:model_that_fails", (), "gives no model: KeyError: 'no weights'"),
        ("net.onnx", "builtins:dict", (), "'builtins:dict' returns dict; it must return a torch.nn.Module"),
        ("net.onnx", "models:Branches", (), "the example inputs do not fit the model"),
        ("gone.onnx", "models:Residual", (), "no file"),
        ("net.fxc", "models:Residual", (), "is no ONNX file"),
        ("net.onnx", "models:Residual", ("--inputs", "x.csv"), "are read from .npz and .pt files"),
        ("net.onnx", "models:Residual", ("--inputs", "gone.npz"), "cannot read the inputs 'gone.npz'"),
        ("net.onnx", "models:Residual", ("--html", "nowhere/page.html"), "cannot write 'nowhere/page.html'"),
    ],
)
def test_what_verify_cannot_do_is_one_line_and_code_2(
    file: str, model: str, options: tuple[str, ...], message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(exported, file, *options, model=model) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and message in said.err
    assert said.err.count("\n") == 1


def test_inputs_that_would_run_code_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([object()]))
    torch.save(Residual(), tmp_path / "x.pt")
    for name in ("x.npz", "x.pt"):
        assert verify(exported, "net.onnx", "--inputs", str(tmp_path / name)) == 2
        assert "cannot read the inputs" in capsys.readouterr().err


def test_an_interrupt_is_said_in_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(chosen: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("wait", "Wait.", lambda parser: None, interrupt),))
    assert run("wait") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_as_a_program_it_shows_no_traceback() -> None:
    command = [sys.executable, "-m", "fxcompress.cli", "plan", "Q40(w)", "--steps", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'bits' is 40")
    assert "Traceback" not in done.stderr
