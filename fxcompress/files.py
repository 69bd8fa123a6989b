"""Write files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxcompress.errors import ExportError


def writable(path: str | os.PathLike[str]) -> Path:
    """`path`, if a file can be written there. Raises ExportError, which says why not."""
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        what = "is a folder"
    elif not folder.is_dir():
        what = "has no folder to stand in"
    elif not os.access(folder, os.W_OK):
        what = "is in a read-only folder"
    else:
        return target
    raise ExportError(f"cannot write '{target}': it {what}; name a file in an existing folder you may write to")


LARGEST_FILE = 2**31 - 2**20
"""Bytes of tensors that a file of protocol buffers, which end at 2 GB, can hold beside its graph."""


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside files in `target` to write to, whose files take their places in the end.

    Raises ExportError if there can be none.
    """
    try:
        made = tempfile.TemporaryDirectory(dir=target, prefix=".writing-")
    except OSError as error:
        raise ExportError(f"cannot write in '{target}': {error.strerror}; name a folder you may write to") from None
    with made as folder:
        yield Path(folder)
        for file in sorted(Path(folder).iterdir(), key=lambda f: f.suffix != ".data"):  # what names others comes last
            os.chmod(file, 0o666 & ~_umask())
            os.replace(file, target / file.name)


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A file beside `target` to write to, which takes its place in the end: a reader sees the old file or the new one,
    never a part. Raises ExportError if there can be none."""
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise ExportError(
            f"cannot write '{target}': {error.strerror}; name a file in a folder you may write to"
        ) from None
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
