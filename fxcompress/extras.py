"""Packages that only some of the library needs."""

from __future__ import annotations

import importlib
from typing import Any

from fxcompress.errors import LoadError


def needed(module: str, extra: str) -> Any:
    """The module. Raises LoadError, which says what to install, if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LoadError(
            f"this needs '{module}' ({error}); install it with: pip install 'fxcompress[{extra}]'"
        ) from None
