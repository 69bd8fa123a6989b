"""A file of JSON lines that is only ever appended to, so that what was measured outlives whatever stops the program."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxcompress.errors import ExportError


class Store:
    """Records of a file, or of this process alone where there is none. A last line that was cut off is left out."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        """Raises ExportError if a line of the file is no record."""
        self.path = None if path is None else Path(path)
        self.records: list[dict[str, Any]] = []
        if self.path is not None and self.path.exists():
            self.records = list(_read(self.path))

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first record that has these values."""
        return next((r for r in self.records if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one, on disk when this returns. Raises ExportError if it cannot be written."""
        self.records.append(json.loads(json.dumps(record)))
        if self.path is None:
            return
        try:
            with self.path.open("a+b") as file:
                # One write of a whole line, behind a line that another program left unfinished.
                file.seek(0, os.SEEK_END)
                torn = file.tell() and _last_byte(self.path) != b"\n"
                file.write(b"\n" * bool(torn) + json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ExportError(f"cannot write '{self.path}': {error.strerror}; name a file you may write to") from None


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines) or not line.rstrip().endswith(b"}"):
                continue  # cut off while it was written
            record = None
        if not isinstance(record, dict):
            raise ExportError(f"line {number} of '{path}' is no record; name the file of an earlier run, or a new one")
        found.append(record)
    return found


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
