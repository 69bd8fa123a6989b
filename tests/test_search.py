"""Searching schedules: spaces, rankings, studies that several processes share and that outlive a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import searching
import torch
from torch import nn

import fxcompress as fxc
from fxcompress.cli import main
from fxcompress.errors import CompareError, SpecError
from fxcompress.search import storage_of
from fxcompress.timing import plan

HERE = Path(__file__).parent


class Fixed:
    """Chooses the first or the last of everything."""

    def __init__(self, last: bool) -> None:
        self.last, self.names = last, []

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.names.append(name)
        return high if self.last else low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.names.append(name)
        return choices[-1 if self.last else 0]


def test_a_space_has_every_order_and_times_inside_of_its_window() -> None:
    space = fxc.Space("P0.5(w,f) -> Q8(w,f)", "10%", "70%", sparsity=(0.2, 0.8), bits=(4, 8), compositions=True)
    assert len(space.order_names) == 24
    first, last = Fixed(False), Fixed(True)
    specs = space.choose(first), space.choose(last)
    assert [rule.op for rule in specs[0].rules] == ["prune", "prune", "quantize", "quantize"]
    assert [rule.op for rule in specs[1].rules] == ["quantize", "quantize", "prune", "prune"]
    assert {r.sparsity for r in specs[1].rules if r.op == "prune"} == {0.8}
    assert {r.bits for r in specs[0].rules if r.op == "quantize"} == {4}
    assert {r.composition for r in specs[1].rules if r.op == "prune"} == {"p(q(x))"}
    for spec in specs:
        steps = [act.step for phase in plan(spec, 1000) for act in phase.acts_of()]
        assert min(steps) > 100 and max(steps) <= 700 and steps == sorted(steps)
    assert first.names[:6] == ["order", "gap 0", "gap 1", "gap 2", "gap 3", "gap 4"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"spec": "P0.5(w)@10%"}, r"'P0.5\(w\)@10%' has a start, which the search chooses"),
        ({"spec": "Q8(w)", "orders": "some"}, "orders is 'some'; it must be 'any' or 'given'"),
        ({"spec": "P0.1(w,f) -> P0.2(w,f) -> Q8(w,f)"}, "has 6 parts in 720 orders; pass orders='given'"),
        ({"spec": "Q8(w)", "start": "80%"}, "end is '80%', not later than start '80%'"),
        ({"spec": "Q8(w)", "end": "1"}, "end is '1'; write a share of training"),
        ({"spec": "P0.5(w)", "sparsity": (0.9, 0.1)}, "sparsity is"),
    ],
)
def test_spaces_that_cannot_be_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        fxc.Space(**options)


def test_a_search_ranks_and_writes_the_best_spec(tmp_path: Path) -> None:
    found = searching.run(str(tmp_path / "s.journal"), 12, maximize=False)
    values = [t.values[0] for t in found.trials]
    assert values == sorted(values) and len(values) == 12
    assert "12 trials, 0 stopped early" in str(found) and "importance of" in str(found)
    written = found.write(tmp_path / "out")
    assert [path.name for path in written] == ["best.yaml", "ranking.txt", "search.svg"]
    assert fxc.Spec.load(tmp_path / "out" / "best.yaml") == found.best
    net = fxc.compress(searching.build()[0], str(tmp_path / "out" / "best.yaml"), searching.X, total_steps=40)
    assert searching.evaluate(net) == values[0]


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    found = searching.run(str(tmp_path / "s.journal"), 8, objectives=("metric", "bytes", "bops"))
    assert len(found.front) > 1 and found.front[0] is found.trials[0]
    assert {p.name for p in found.write(tmp_path / "out")} >= {"front-1.yaml", "front-2.yaml", "best.yaml"}


def test_latency_is_measured(tmp_path: Path) -> None:
    found = searching.run(str(tmp_path / "s.journal"), 1, objectives=("latency",))
    assert 0 < found.trials[0].values[0] < 1000


def test_bad_trials_are_stopped_early(tmp_path: Path) -> None:
    def train(net: nn.Module, optimizer: torch.optim.Optimizer, progress: Any) -> None:
        for step in range(searching.STEPS):
            optimizer.step()
            if step == 20:
                progress(step, searching.evaluate(net))

    found = fxc.search(
        searching.SPACE, searching.build, train, searching.evaluate, example_inputs=searching.X,
        total_steps=searching.STEPS, trials=15, storage=tmp_path / "s.journal", sampler="random",
    )  # fmt: skip
    assert found.stopped > 0 and len(found.trials) + found.stopped == 15


def test_a_study_goes_on_and_is_not_mixed_with_another(tmp_path: Path) -> None:
    storage = str(tmp_path / "s.journal")
    searching.run(storage, 3)
    assert len(searching.run(storage, 5).trials) == 5
    with pytest.raises(CompareError, match=r"study 'search' was begun with objectives=\['metric'\], not \['bops'\]"):
        searching.run(storage, 5, objectives=("bops",))
    sqlite = searching.run(f"sqlite:///{tmp_path / 's.db'}", 5)
    assert [t.values for t in sqlite.trials] == [t.values for t in searching.run(storage, 5).trials]


def test_an_error_of_the_users_ends_the_search_and_the_trial_is_done_again(tmp_path: Path) -> None:
    def failing(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        raise RuntimeError("out of images")

    storage = tmp_path / "s.journal"
    with pytest.raises(RuntimeError, match="out of images"):
        fxc.search(
            searching.SPACE, searching.build, failing, searching.evaluate, example_inputs=searching.X,
            total_steps=searching.STEPS, storage=storage, sampler="random",
        )  # fmt: skip
    assert [t.user_attrs["slot"] for t in searching.run(str(storage), 2).trials] in ([0, 1], [1, 0])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="objective is 'latncy'; did you mean 'latency'"):
        searching.run(str(tmp_path / "s"), 1, objectives=("latncy",))
    with pytest.raises(CompareError, match="sampler is 'grid'; it must be tpe or random"):
        searching.run(str(tmp_path / "s"), 1, sampler="grid")
    with pytest.raises(CompareError, match="cannot use storage 'nonsense://x'"):
        searching.run("nonsense://x", 1)


def test_four_processes_one_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    trials, storage = 16, str(tmp_path / "s.journal")
    command = [sys.executable, str(HERE / "searching.py"), storage, str(trials), "0.4"]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for _ in range(4)]
    victim = _pid_in_a_trial(storage, {w.pid for w in workers})
    os.kill(victim, signal.SIGKILL)
    workers.append(subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL))
    codes = {w.pid: w.wait(timeout=180) for w in workers}
    assert codes.pop(victim) == -signal.SIGKILL and set(codes.values()) == {0}
    study = optuna.load_study(study_name="search", storage=storage_of(storage))
    done = [t for t in study.get_trials() if t.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["slot"] for t in done) == list(range(trials))
    lost = [
        t for t in study.get_trials() if t.state.name == "FAIL" and t.user_attrs.get("alive", {}).get("pid") == victim
    ]
    assert len(lost) == 1
    serial = searching.run(str(tmp_path / "serial.journal"), trials)
    assert {t.user_attrs["slot"]: t.values for t in done} == {t.user_attrs["slot"]: t.values for t in serial.trials}
    assert max(t.values[0] for t in done) == serial.trials[0].values[0]


def _pid_in_a_trial(storage: str, pids: set[int]) -> int:
    """One of these processes, stopped in the middle of a trial, once another trial was completed."""
    for _ in range(1800):
        time.sleep(0.1)
        trials = _trials(storage)
        for pid in _running(trials) & pids if any(t.state.name == "COMPLETE" for t in trials) else ():
            os.kill(pid, signal.SIGSTOP)  # or it might end its trial before it is killed
            if pid in _running(_trials(storage)):
                return pid
            os.kill(pid, signal.SIGCONT)
    raise AssertionError("no trial ran")


def _trials(storage: str) -> list[Any]:
    if not os.path.exists(storage):
        return []
    try:
        return optuna.load_study(study_name="search", storage=storage_of(storage)).get_trials()
    except KeyError:
        return []


def _running(trials: list[Any]) -> set[int]:
    return {t.user_attrs["alive"]["pid"] for t in trials if t.state.name == "RUNNING" and "alive" in t.user_attrs}


def test_the_command_line_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    (tmp_path / "task.py").write_text(
        "import searching\n\ndef task():\n    def train(net, optimizer):\n        for _ in range(searching.STEPS):\n"
        "            optimizer.step()\n    return dict(build=searching.build, train=train, evaluate=searching.evaluate,\n"
        "                example_inputs=searching.X, total_steps=searching.STEPS)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["search", "task:task", "P0.5(w) -> Q8(w,f)", "--trials", "3", "--storage", str(tmp_path / "s.journal")]
    command += ["--sampler", "random", "--bits", "4", "8", "--sparsity", "0.2", "0.6", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "3 trials" in capsys.readouterr().out
    assert fxc.Spec.load(tmp_path / "out" / "best.yaml").rules
    assert main(["search", "task:nothing", "Q8(w)"]) == 2
    assert "'task:nothing' gives no task" in capsys.readouterr().err
