"""Lets the tests of tests/passes import the helpers beside this file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from hypothesis import settings
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from fxcompress.runtime import PRECISE, saturates

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")


@pytest.fixture(autouse=True, scope="session")
def exact_kernels() -> Iterator[None]:
    """On processors whose 8-bit kernels saturate, ONNX Runtime computes exactly throughout the tests: they check files,
    not processors."""
    with pytest.MonkeyPatch.context() as patch:
        if saturates():
            patch.setattr(ort.InferenceSession, "__init__", _precise(ort.InferenceSession.__init__))
        yield


def _precise(init: Callable[..., None]) -> Callable[..., None]:
    def made(self: Any, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = sess_options or ort.SessionOptions()
        options.add_session_config_entry(PRECISE, "1")
        try:
            init(self, model, options, *args, **kwargs)
        except Fail:  # it has no precise mode for a weight that is used twice
            options.add_session_config_entry(PRECISE, "0")
            init(self, model, options, *args, **kwargs)

    return made


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many random networks tests/test_random_graphs.py makes."""
    parser.addoption("--graphs", type=int, default=100, help="random networks to export and verify (default: 100)")
