"""A worker process, asked from the main program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent


class Asked:
    """The worker of one peer and one model: started and ready, or RuntimeError with the last line of its error."""

    def __init__(self, python: str, log: Path, arguments: list[str]) -> None:
        paths = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": arguments[2]}
        command = [python, "-W", "ignore", "-m", "train_peers_parts.worker", *arguments]
        self.log = log
        with log.open("w") as said:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )
        self.about: dict[str, Any] = json.loads(self._line())

    def seconds(self, kind: str) -> float:
        """Of one step, "float" or "compressed"."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its log says why
            self.process.stdin.write(kind + "\n")
            self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        """No more questions."""
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.end()
            said = self.log.read_text().strip().splitlines()
            raise RuntimeError(said[-1] if said else f"exit {self.process.returncode}")
        return line
