"""Lets the tests of tests/passes import the helpers beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many random networks tests/test_random_graphs.py makes."""
    parser.addoption("--graphs", type=int, default=100, help="random networks to export and verify (default: 100)")
