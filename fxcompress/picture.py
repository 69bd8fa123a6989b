"""A schedule as a picture: a bar for each rule over the steps; sparsity, bits and learning rate below."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fxcompress.errors import ExportError
from fxcompress.files import whole, writable
from fxcompress.tracks import Track

FORMATS = (".png", ".svg", ".pdf")


def write_picture(
    found: Sequence[Track], total_steps: int, path: str | os.PathLike[str], rates: Mapping[int, float] | None = None
) -> None:
    """Write the picture, whole or not at all; `rates` are learning rates by step.

    Raises ExportError if `path` cannot be written or ends in none of FORMATS.
    """
    form = form_of(path)
    with whole(writable(path)) as file:
        file.write_bytes(drawn(found, total_steps, rates, form))


def form_of(path: str | os.PathLike[str]) -> str:
    """The format that a picture's name asks for. Raises ExportError if it ends in none of FORMATS."""
    form = Path(path).suffix.lower()
    if form not in FORMATS:
        raise ExportError(f"'{path}' is no name for a picture; it must end in {', '.join(FORMATS)}")
    return form.removeprefix(".")


def drawn(
    found: Sequence[Track], total_steps: int, rates: Mapping[int, float] | None = None, form: str = "svg"
) -> bytes:
    """The picture in a format that Matplotlib knows."""
    import matplotlib
    from matplotlib.figure import Figure

    curves = [("sparsity", [t for t in found if t.is_sparsity]), ("bits", [t for t in found if not t.is_sparsity])]
    rows = 1 + sum(bool(some) for _, some in curves) + bool(rates)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fxcompress", "font.size": 9}):
        figure = Figure(figsize=(8, 0.9 + 0.3 * len(found) + 1.3 * (rows - 1)), layout="constrained")
        heights = [max(0.3 * len(found), 0.6), *[1.0] * (rows - 1)]
        axes: Any = list(figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        colours = {track: f"C{place % 10}" for place, track in enumerate(found)}
        _draw_bars(axes[0], found, total_steps, colours)
        below = iter(axes[1:])
        for name, some in curves:
            if some:
                _draw_curves(next(below), name, some, total_steps, colours)
        if rates:
            axis = next(below)
            axis.plot(list(rates), list(rates.values()), color="0.3")
            axis.set_ylabel("learning rate")
        axes[-1].set_xlabel("optimizer step")
        axes[-1].set_xlim(0, total_steps)
        return bytes_of(figure, form)


def bytes_of(figure: Any, form: str) -> bytes:
    """A Matplotlib figure as a file; without a date, so that the same figure gives the same file."""
    target = io.BytesIO()
    figure.savefig(target, format=form, metadata={"Date": None} if form == "svg" else None, dpi=120)
    return target.getvalue()


def _draw_bars(axis: Any, found: Sequence[Track], total_steps: int, colours: Mapping[Track, str]) -> None:
    for row, track in enumerate(found):
        steps = [step for step, _ in track.points] + [total_steps]
        for start, end in pairwise(steps):
            alpha = 0.15 + 0.85 * track.share_at(start) if track.share_at(start) else 0.0
            axis.barh(row, end - start, left=start, height=0.7, color=colours[track], alpha=alpha)
    axis.set_yticks(range(len(found)), [track.label for track in found])
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def _draw_curves(axis: Any, name: str, some: Sequence[Track], total_steps: int, colours: Mapping[Track, str]) -> None:
    for track in some:
        steps = [0, *(step for step, _ in track.points), total_steps]
        axis.step(steps, [track.value_at(s if s else -1) for s in steps], where="post", color=colours[track])
    axis.set_ylabel(name)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
