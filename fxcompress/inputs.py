"""Example inputs of a compressed net."""

from __future__ import annotations

from typing import Any

from fxcompress.capture import bind
from fxcompress.module import CompressedModule


def bind_example(net: CompressedModule, example_inputs: Any) -> dict[str, Any]:
    """Inputs by argument name; those that `compress` was given where there are none. Raises CaptureError if they do
    not fit."""
    return dict(net.schedule.example_inputs) if example_inputs is None else bind(net, example_inputs)
