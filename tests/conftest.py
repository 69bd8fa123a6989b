"""Lets the tests of tests/passes import the helpers beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")
