"""Post-training quantization: all quantization events of a spec at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxcompress.calls import bind
from fxcompress.errors import ScheduleError
from fxcompress.module import CompressedModule


def calibrate(net: CompressedModule, batches: Iterable[Any]) -> None:
    """Choose all scales from what `net` computes on `batches` in evaluation mode, and quantize from then on.

    Args:
        net: what `compress` returned. Its modes, buffers and random state stay as they are.
        batches: example inputs as for `compress`, one or more, on the device of `net`; each is looked at once.

    The schedule stands past its last event afterwards. Events that have acted already are left alone. Raises
    ScheduleError if an event that prunes has not acted yet or there are no batches, CaptureError if one does not fit.
    """
    if not isinstance(net, CompressedModule):
        raise ScheduleError(f"expected what fxcompress.compress returns, got {type(net).__name__}; compress it first")
    net.schedule.calibrate(bind(net, batch) for batch in batches)
