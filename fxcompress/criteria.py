"""Criteria of pruning by name: what makes an entry of a tensor worth keeping."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from fxcompress.fields import nearest, quote

CRITERIA = ("magnitude", "gradient", "movement", "random", "zeros")
Function = Callable[[Any], Any]
"""From a tensor to scores of its shape, of which the least go."""


def load_criterion(value: object) -> str | Function:
    """A criterion's name, or a function, as 'module:name' where it can be found by that.

    Raises ValueError with what is wrong and how to mend it.
    """
    if callable(value):
        text = name_of(value)
        try:
            return text if imported(text) is value else value
        except (ImportError, AttributeError):
            return value
    known = ", ".join(map(repr, CRITERIA))
    fix = f"it must be {known}, a function or its 'module:name'"
    if not isinstance(value, str):
        raise ValueError(f"'criterion' is {quote(value)}", fix)
    if value in CRITERIA:
        return value
    try:
        if callable(imported(value)):
            return value
        why = "is no function"
    except (ImportError, AttributeError, ValueError) as error:
        why = f"cannot be found ({error})"
    what = f"'criterion' is {quote(value)}"
    raise ValueError(f"{what}, which {why}" if ":" in value else what, f"{nearest(value, CRITERIA)}{fix}")


def name_of(criterion: str | Function) -> str:
    """A criterion as text."""
    if isinstance(criterion, str):
        return criterion
    return f"{criterion.__module__}:{getattr(criterion, '__qualname__', repr(criterion))}"


def imported(text: str) -> Any:
    """What 'module:name' names. Raises ImportError, AttributeError or ValueError if there is no such thing."""
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError("write 'module:name'")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
