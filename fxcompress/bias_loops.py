"""The loop that rounds biases on CPUs (`bias_rounding.py`), all of a net's in one call, compiled by Numba.

`run` is a function of C: it is given the address of a count and of as many `BIAS`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, from_dtype, njit, types  # type: ignore[attr-defined]

from fxcompress.cpu_loops import compiled, pointer_to
from fxcompress.rounding import LEAST

ADDRESSES = ("out", "bias", "mean", "variance", "gamma", "own", "of_weight", "of_input")
COUNTS = ("size", "period")
BIAS = np.dtype([(name, np.intp) for name in ADDRESSES + COUNTS] + [("eps", np.float32)], align=True)
"""Of a product with batch norm: `size` values each of the norm's bias, statistics and factor and of the product's own
bias; the weight's scales, one for element `i % period`; and the input's one scale. All float32, and all there: without
batch norm they are those of one that does nothing."""
_BEHIND_COUNT = np.dtype(np.intp).itemsize
_LEAST = np.float32(LEAST)

_floats = pointer_to(types.float32)
_counts, _biases = pointer_to(types.intp), pointer_to(from_dtype(BIAS))


@njit(error_model="numpy", inline="always")
def _rounded(vectors: Any, i: int, eps: Any, scale: Any) -> Any:
    bias, mean, variance, gamma, own = vectors
    gain = gamma[i] / np.sqrt(variance[i] + eps)
    exact = bias[i] - (mean[i] - own[i]) * gain
    step = abs(gain)
    step = (np.float32(1) if step == 0 else step) * scale[0] * scale[1]
    step = _LEAST if step < _LEAST else step
    shift = np.rint(exact / step) * step - exact
    return bias[i] + (shift if abs(shift) < np.inf else np.float32(0))


def _run(address: Any) -> None:
    biases = carray(_biases(address + _BEHIND_COUNT), carray(_counts(address), 1)[0])
    for b in biases:
        n = b.size
        out, of_weight = carray(_floats(b.out), n), carray(_floats(b.of_weight), b.period)
        of_input = carray(_floats(b.of_input), 1)[0]
        vectors = (
            carray(_floats(b.bias), n),
            carray(_floats(b.mean), n),
            carray(_floats(b.variance), n),
            carray(_floats(b.gamma), n),
            carray(_floats(b.own), n),
        )
        if b.period == 1:
            one = of_weight[0]
            for i in range(n):
                out[i] = _rounded(vectors, i, b.eps, (of_input, one))
        elif b.period == n:
            for i in range(n):
                out[i] = _rounded(vectors, i, b.eps, (of_input, of_weight[i]))
        else:
            for i in range(n):
                out[i] = _rounded(vectors, i, b.eps, (of_input, of_weight[i % b.period]))


run = compiled(_run)
