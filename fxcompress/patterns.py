"""Patterns of pruning: which entries of a tensor go together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from fxcompress.fields import quote

UNSTRUCTURED, CHANNEL = "unstructured", "channel"


@dataclass(frozen=True)
class Grouped:
    """N:M: of every M neighbours along a weight's input axis, at most N are not zero (arXiv 2104.08378)."""

    kept: int
    of_each: int

    @classmethod
    def of(cls, pattern: str) -> Self | None:
        """The pattern as read from text such as 2:4, None for others."""
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
        return cls(int(found[1]), int(found[2])) if found else None

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1 - self.kept / self.of_each


@dataclass(frozen=True)
class Blocks:
    """AxB: blocks of A outputs and B inputs, at every place of a kernel by itself, go as a whole."""

    outputs: int
    inputs: int

    @classmethod
    def of(cls, pattern: str) -> Self | None:
        """The pattern as read from text such as 4x1, None for others."""
        found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", pattern)
        return cls(int(found[1]), int(found[2])) if found else None


def read_pattern(value: object) -> str:
    """Check a pattern's text. Raises ValueError with what is wrong and how to mend it."""
    text = value if isinstance(value, str) else ""
    grouped, blocks = Grouped.of(text), Blocks.of(text)
    fine = (grouped and 0 < grouped.kept < grouped.of_each) or (blocks and blocks.outputs * blocks.inputs > 1)
    if text in (UNSTRUCTURED, CHANNEL) or fine:
        return text
    raise ValueError(
        f"'pattern' is {quote(value)}",
        "it must be 'unstructured', 'channel', N:M such as '2:4' (2 of 4 are kept), or blocks such as '4x1'",
    )
