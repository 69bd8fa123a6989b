"""The loops of fake quantization on CPUs: what reads each element once and writes it once, compiled by Numba.

`run` is a function of C: it is given the address of a header and jobs (`cpu_kernels.py`), and does its thread's part of
every job. Importing this compiles it, or reads what was compiled before from Numba's cache.
"""

# Nothing here may reorder or approximate: the bits are those of ONNX Runtime. So no "fastmath".
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

HEADER = np.dtype([(name, np.intp) for name in ("thread_num", "num_threads", "count", "is_gate")])
"""The addresses of OpenMP's functions, both 0 where only one thread comes; how many jobs, and of which kind."""
_BEHIND_HEADER = HEADER.itemsize
ADDRESSES = ("x", "out", "keep", "size", "mask", "scale", "zero_points")
COUNTS = ("row", "channels", "zeros", "period", "is_dense")
NUMBERS = ("zero_point", "qmin", "qmax", "least", "most")
JOB = np.dtype([(name, np.intp) for name in ADDRESSES + COUNTS] + [(name, np.float32) for name in NUMBERS], align=True)
"""Element `i` of `size` has the mask's byte `i % period`, and the scale `i // row % channels`, with the zero point of
the same place of the `zeros`, which are as many, or one, or none where `zero_point` is that of all. The address of a
mask that is not there is 0, and so is that of `keep`, the bytes of 1 where a gradient passes, and that of the scale
where `x` is only multiplied by the mask; `is_dense` is 0 or 1.

A gate is `x`, a gradient, where `keep` is not 0, and 0 elsewhere; it may be written over `x`."""

_SHIFT = np.float32(1.5 * 2**23)
"""Beside it float32 holds whole numbers only, those within 2^22: a sum with it is rounded."""


def pointer_to(kind: Any) -> Any:
    """What makes of an address a pointer to this."""

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), code  # type: ignore[no-untyped-call]

    return pointer


_floats, _bytes, _ints = pointer_to(types.float32), pointer_to(types.uint8), pointer_to(types.int32)
_headers, _jobs = pointer_to(from_dtype(HEADER)), pointer_to(from_dtype(JOB))


@intrinsic
def _asked(context: Any, address: Any) -> Any:
    """What the function at this address says, `int f(void)` in C."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(args[0], function), []), context.get_value_type(types.intp))

    return types.intp(types.intp), code


@njit(error_model="numpy")
def _saturated(q: Any, least: Any, most: Any) -> Any:
    q = least if least > q else q  # what is no number stays so
    return most if most < q else q


@njit(error_model="numpy")
def _steps(x: Any, scale: Any) -> Any:
    """`x / scale`, rounded half to even by the addition itself, plus `_SHIFT`."""
    return x / scale + _SHIFT


@njit(error_model="numpy", inline="always")
def _round(job: Any, arrays: Any, scale: Any, zero_point: Any) -> None:
    x, out, keep, mask = arrays
    low, high = job.qmin - zero_point, job.qmax - zero_point
    # Rounding keeps the order, so that bounding the input is bounding the integers.
    least = _saturated(np.rint(job.least / scale), low, high) + _SHIFT
    most = _saturated(np.rint(job.most / scale), low, high) + _SHIFT
    low, high = low + _SHIFT, high + _SHIFT
    if job.keep and job.mask:
        always = np.uint8(job.is_dense)
        for i in range(x.size):
            q = _steps(_saturated(x[i], job.least, job.most) * np.float32(mask[i]), scale)
            is_within = (q >= low) & (q <= high) & (x[i] > job.least) & (x[i] < job.most)
            keep[i] = np.uint8(is_within) & (mask[i] | always)
            out[i] = (_saturated(q, least, most) - _SHIFT) * scale
    elif job.keep:
        for i in range(x.size):
            q = _steps(x[i], scale)
            keep[i] = np.uint8((q >= low) & (q <= high) & (x[i] > job.least) & (x[i] < job.most))
            out[i] = (_saturated(q, least, most) - _SHIFT) * scale
    elif job.mask:
        for i in range(x.size):
            q = _steps(_saturated(x[i], job.least, job.most) * np.float32(mask[i]), scale)
            out[i] = (_saturated(q, least, most) - _SHIFT) * scale
    else:
        for i in range(x.size):
            q = _steps(x[i], scale)
            out[i] = (_saturated(q, least, most) - _SHIFT) * scale


@njit(error_model="numpy", inline="always")
def _mask(job: Any, arrays: Any) -> None:
    x, out, keep, mask = arrays
    if job.keep:
        always = np.uint8(job.is_dense)
        for i in range(x.size):
            keep[i] = mask[i] | always
    for i in range(x.size):
        out[i] = x[i] * np.float32(mask[i])


@njit(error_model="numpy")
def _rows(job: Any, start: int, stop: int) -> None:
    """Round, or mask, from `start` to `stop`."""
    x, out = carray(_floats(job.x), job.size), carray(_floats(job.out), job.size)
    keep, mask = carray(_bytes(job.keep), job.size), carray(_bytes(job.mask), job.period)
    scales, zero_points = carray(_floats(job.scale), job.channels), carray(_ints(job.zero_points), job.zeros)
    row = start // job.row
    channel, masked = row % job.channels, start % job.period
    while start < stop:
        end = min(stop, (row + 1) * job.row)
        part = mask[masked : masked + end - start]
        written, kept = out[start:end], keep[start:end]
        zero_point = np.float32(zero_points[channel % job.zeros]) if job.zeros else job.zero_point
        if job.scale == 0 and job.x == job.out:
            _mask(job, (written, written, kept, part))
        elif job.scale == 0:
            _mask(job, (x[start:end], written, kept, part))
        elif job.x == job.out:  # said so that many elements may be written at once
            _round(job, (written, written, kept, part), scales[channel], zero_point)
        else:
            _round(job, (x[start:end], written, kept, part), scales[channel], zero_point)
        masked = masked + end - start if masked + end - start < job.period else 0
        row, channel = row + 1, channel + 1 if channel + 1 < job.channels else 0
        start = end


@njit(error_model="numpy")
def _gate(job: Any, start: int, stop: int) -> None:
    grad, out = carray(_floats(job.x), job.size)[start:stop], carray(_floats(job.out), job.size)[start:stop]
    keep, zero = carray(_bytes(job.keep), job.size)[start:stop], np.float32(0)
    if job.x == job.out:  # as above
        for i in range(keep.size):
            passed = out[i]
            out[i] = passed if keep[i] else zero
    else:
        for i in range(keep.size):
            passed = grad[i]
            out[i] = passed if keep[i] else zero


def _run(address: Any) -> None:
    header = carray(_headers(address), 1)[0]
    place, places = 0, 1
    if header.thread_num:  # there may be fewer threads than were asked for
        place, places = _asked(header.thread_num), _asked(header.num_threads)  # type: ignore[call-arg]
    jobs = carray(_jobs(address + _BEHIND_HEADER), header.count)
    for i in range(header.count):
        start = jobs[i].size * place // places
        stop = jobs[i].size * (place + 1) // places
        if header.is_gate:
            _gate(jobs[i], start, stop)
        else:
            _rows(jobs[i], start, stop)


def compiled(function: Any) -> Any:
    """A function of C that takes an address."""
    signature = types.void(types.intp)
    try:
        return cfunc(signature, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's own can be written to
        return cfunc(signature, error_model="numpy")(function)


run = compiled(_run)
