"""Bar charts as SVG that stands inside an HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

SMALLEST = 1e-6
"""The share at which a bar has no height."""

MOST_BARS = 41


@dataclass(frozen=True)
class Bar:
    """A bar: the share it stands for, 0 to 1, the words that appear on it, and the class that colours it."""

    share: float
    label: str
    kind: str = ""


def chart(bars: Sequence[Bar], width: int, height: int, ticks: Sequence[str] = ()) -> str:
    """Bars side by side, their heights on a logarithmic scale from a millionth to all, over evenly spaced ticks."""
    step = width / max(len(bars), 1)
    drawn = []
    for i, bar in enumerate(bars):
        tall = height * _height(bar.share)
        drawn.append(
            f'<rect class="{escape(bar.kind)}" x="{i * step:.2f}" y="{height - tall:.2f}" '
            f'width="{max(step * 0.9, 0.5):.2f}" height="{tall:.2f}"><title>{escape(bar.label)}</title></rect>'
        )
    places = [width * (i + 0.5) / len(ticks) for i in range(len(ticks))]
    texts = [f'<text x="{x:.1f}" y="{height + 11}">{escape(t)}</text>' for x, t in zip(places, ticks, strict=True)]
    base = f'<line x1="0" x2="{width}" y1="{height}" y2="{height}"/>'
    size = f'width="{width}" height="{height + 14}" viewBox="0 0 {width} {height + 14}"'
    return f'<svg role="img" {size}>{"".join(drawn)}{base}{"".join(texts)}</svg>'


def histogram(counts: Mapping[int, int], width: int = 220, height: int = 40) -> str:
    """How many elements have each difference in steps; where there are too many differences a bar holds a range."""
    total = max(sum(counts.values()), 1)
    low, high = min((*counts, 0)), max((*counts, 0))
    size = math.ceil((high - low + 1) / MOST_BARS)
    bars, ticks = [], []
    for first in range(low, high + 1, size):
        last = min(first + size - 1, high)
        count = sum(counts.get(step, 0) for step in range(first, last + 1))
        where = f"{first:+d}" if first == last else f"{first:+d} to {last:+d}"
        bars.append(Bar(count / total, f"{where} steps: {count} of {total}", "equal" if first <= 0 <= last else "off"))
        ticks.append(f"{first:+d}")
    return chart(bars, width, height, ticks if len(ticks) <= 9 else [ticks[0], ticks[-1]])


def _height(share: float) -> float:
    return 0.0 if share <= 0 else max(1 - math.log10(share) / math.log10(SMALLEST), 0.04)
