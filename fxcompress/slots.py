"""Which of a study's trials are still to be done, when several processes work on it and any of them may be killed.

A study has `count` slots. Every trial is for one slot; a slot is done once a trial of it is finished, and taken while
one runs. A running trial says that it lives by a beat; one that does not, or whose process on this machine is gone, is
given up, and its slot is free again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

BEAT = 20.0
"""Seconds between two signs of life of a running trial."""
SILENT = 6
"""Beats that a trial may be silent for before it is given up."""


class Slots:
    """The slots of one study."""

    def __init__(self, study: Any, count: int, beat: float = BEAT) -> None:
        self.study, self.count, self.beat = study, count, beat
        self.host, self.pid = socket.gethostname(), os.getpid()

    def claim(self) -> Any:
        """A trial to run, with its slot in `user_attrs`; None once every slot is done. Waits while others run."""
        while True:
            self._give_up_dead()
            trials = self._trials()
            waiting = [t for t in trials if t.state.name == "WAITING"]
            free = [slot for slot in range(self.count) if slot not in {t.user_attrs["slot"] for t in trials}]
            if not waiting and not free:
                if all(t.state.is_finished() for t in trials):
                    return None
                time.sleep(min(self.beat, 1.0))
                continue
            if not waiting:
                self.study.enqueue_trial({}, user_attrs={"slot": free[0]})
            trial = self.study.ask()
            slot = trial.user_attrs.get("slot")  # none, if another process took what was waiting
            if slot is not None and self._is_first(trial.number, slot):
                return trial
            self._fail(trial.number)

    @contextmanager
    def alive(self, trial: Any) -> Iterator[None]:
        """While this lasts, `trial` gives signs of life."""
        stop = threading.Event()

        def beat() -> None:
            while True:
                with suppress(Exception):  # a storage that is busy is tried again
                    trial.set_user_attr("alive", {"host": self.host, "pid": self.pid, "at": time.time()})
                if stop.wait(self.beat):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        trial.set_user_attr("alive", {"host": self.host, "pid": self.pid, "at": time.time()})
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _trials(self) -> list[Any]:
        """Trials that count: all but those that were given up or are one too many."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "FAIL" and "slot" in t.user_attrs]

    def _is_first(self, number: int, slot: int) -> bool:
        return all(t.number >= number for t in self._trials() if t.user_attrs["slot"] == slot)

    def _give_up_dead(self) -> None:
        for trial in self._trials():
            if trial.state.name == "RUNNING" and self._is_dead(trial):
                self._fail(trial.number)

    def _is_dead(self, trial: Any) -> bool:
        said = trial.user_attrs.get("alive")
        if said is None:  # killed, or about to speak
            return bool(time.time() - trial.datetime_start.timestamp() > SILENT * self.beat)
        if said["host"] == self.host and not _runs(said["pid"]):
            return True
        return bool(time.time() - said["at"] > SILENT * self.beat)

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        with suppress(Exception):  # another process was faster
            self.study.tell(number, state=TrialState.FAIL)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
