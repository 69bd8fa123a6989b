"""Post-training quantization: all quantization events of a spec at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fxcompress.bias_correction import correct_biases
from fxcompress.calls import bind
from fxcompress.errors import ScheduleError
from fxcompress.module import CompressedModule


def calibrate(net: CompressedModule, batches: Iterable[Any], *, correct_bias: bool = False) -> None:
    """Choose all scales from what `net` computes on `batches` in evaluation mode, and quantize from then on.

    Args:
        net: what `compress` returned. Its modes, buffers and random state stay as they are.
        batches: example inputs as for `compress`, one or more, on the device of `net`; each is looked at once, or twice
            to correct biases.
        correct_bias: shift biases, or the running means of batch norms, by the mean error that rounding the weights
            makes in each channel (arXiv 1906.04721, section 4.2). Nothing is trained.

    The schedule stands past its last event afterwards. Events that have acted already are left alone. Raises
    ScheduleError if an event that prunes has not acted yet or there are no batches, CaptureError if one does not fit.
    """
    if not isinstance(net, CompressedModule):
        raise ScheduleError(f"expected what fxcompress.compress returns, got {type(net).__name__}; compress it first")
    if correct_bias and isinstance(batches, Iterator):
        raise ScheduleError(
            f"batches is a {type(batches).__name__}, which can be read once, and correct_bias=True reads it twice; "
            "pass a list or a DataLoader"
        )
    net.schedule.calibrate(bind(net, batch) for batch in batches)
    if correct_bias:
        correct_biases(net, (bind(net, batch) for batch in batches))
