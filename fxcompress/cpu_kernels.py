"""Fake quantization on CPUs, one pass over memory a direction, in the threads that PyTorch's own operators run in.

A function that only bounds its input, and a mask, take part and take no pass of their own. Beside each value a byte is
kept, that says whether its gradient passes; the input need not stay.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.rounding import Rounding

PLAIN = (Tensor, nn.Parameter)
"""The types of tensors that have memory of their own for certain."""
GRAIN = 2**15
"""Elements that are worth a thread, as in PyTorch."""
_HEADER = struct.Struct("@4q")
# The fields of `cpu_loops.JOB`: those that change from call to call come first.
_TENSORS = struct.Struct("@4q")
_REST = struct.Struct("@8q5f4x")
_NO_REST = bytes(_REST.size)
_ONE = torch.Size()


def has_layout(x: Tensor, how: Rounding) -> bool:
    """Whether the memory of `x` is one row after the other, each of one scale, and all else is of the types there are
    loops for."""
    if _is_of(how.prepared, x, how):
        return True
    if x.numel() == 0 or _rows(x.shape, x.stride(), _shape(how.scale)) is None:
        return False
    if how.mask is not None and not (how.mask.is_cpu and how.mask.dtype in (torch.bool, torch.uint8)):
        return False
    if any(isinstance(t, Tensor) and type(t) not in PLAIN for t in (how.scale, how.zero_point, how.mask)):
        return False  # these may have no memory
    kinds = (how.scale, torch.float32), (how.zero_point, torch.int32)
    return all(t.is_cpu and t.is_contiguous() and t.dtype is kind for t, kind in kinds if isinstance(t, Tensor))


Job = tuple[bytes, Tensor | None]
"""The fields of `cpu_loops.JOB`, and a tensor that they point to."""


def rounded(x: Tensor, how: Rounding, out: Tensor, keep: Tensor | None = None) -> Job:
    """A job for `run`: `x`, float32, is rounded to `out`, and `keep`, uint8, says where its gradient passes. All three
    lie in memory alike; `out` may be `x`."""
    ready = how.prepared  # which another thread may exchange
    if not _is_of(ready, x, how):
        ready = _prepare(x, how)
    tensors = x.data_ptr(), out.data_ptr(), 0 if keep is None else keep.data_ptr(), x.numel()
    return _TENSORS.pack(*tensors) + ready[2], ready[3]


def gated(grad: Tensor, keep: Tensor, out: Tensor) -> Job:
    """A job for `run`: `grad` where `keep` is not 0, and 0 elsewhere; all three as above."""
    return _TENSORS.pack(grad.data_ptr(), out.data_ptr(), keep.data_ptr(), grad.numel()) + _NO_REST, None


def run(jobs: Sequence[Job], size: int, is_gate: bool = False) -> None:
    """Do all jobs, which are of one kind and have `size` elements together."""
    threads = min(torch.get_num_threads(), -(-size // GRAIN)) if size > GRAIN else 1
    loops, team = _loops(), _team() if threads > 1 else None
    parts = [job for job, _ in jobs]
    if team is None:
        loops(_HEADER.pack(0, 0, len(parts), is_gate) + b"".join(parts))
    else:
        parallel, *asked = team
        parallel(loops, _HEADER.pack(*asked, len(parts), is_gate) + b"".join(parts), threads, 0)


def _prepare(x: Tensor, how: Rounding) -> tuple[Any, ...]:
    """What does not change from call to call; kept, if it says where the mask is, not what was in it."""
    row, channels = _rows(x.shape, x.stride(), _shape(how.scale)) or (x.numel(), 1)
    mask, zero = None if how.mask is None else _beside(x, how.mask), how.zero_point
    period, mask_at = (x.numel(), 0) if mask is None else (mask.numel(), mask.data_ptr())
    zeros, zeros_at, known = (0, 0, zero) if isinstance(zero, int) else (zero.numel(), zero.data_ptr(), 0)
    addresses = mask_at, 0 if how.scale is None else how.scale.data_ptr(), zeros_at
    counts = min(row, period), channels, zeros, period, how.is_dense
    rest = _REST.pack(*addresses, *counts, known, *how.ends, *how.within)
    ready = x.shape, x.stride(), rest, mask, _addresses(how)
    if mask is None or how.mask is None or mask_at == how.mask.data_ptr():
        how.prepared = ready
    return ready


def _is_of(ready: Any, x: Tensor, how: Rounding) -> bool:
    return ready is not None and ready[0] == x.shape and ready[1] == x.stride() and ready[4] == _addresses(how)


def _addresses(how: Rounding) -> tuple[int, ...]:
    """Of memory that a tensor may have exchanged."""
    return tuple(t.data_ptr() for t in (how.scale, how.zero_point, how.mask) if isinstance(t, Tensor))


def _shape(scale: Tensor | None) -> torch.Size:
    return _ONE if scale is None else scale.shape


@lru_cache(maxsize=2**14)
def _rows(shape: tuple[int, ...], strides: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int] | None:
    """How many neighbours in memory share a scale, and how many scales follow each other; None where it is not so."""
    rest = 1
    for axis in sorted((axis for axis, n in enumerate(shape) if n > 1), key=lambda axis: strides[axis]):
        if strides[axis] != rest:
            return None  # there are gaps, or elements that are there twice
        rest *= shape[axis]
    varying = [axis for axis, n in enumerate(scales) if n > 1]
    if not varying:
        return math.prod(shape), 1
    axis = varying[0]
    if len(varying) > 1 or len(scales) != len(shape) or scales[axis] != shape[axis]:
        return None
    return strides[axis], shape[axis]


def _beside(x: Tensor, mask: Tensor) -> Tensor:
    """The mask as bytes that lie as the elements of `x` or of one sample do."""
    ones = mask.view(torch.uint8)
    if ones.shape == x.shape:
        return ones if ones.stride() == x.stride() else torch.empty_like(x, dtype=torch.uint8).copy_(ones)
    if ones.shape == x.shape[1:] and ones.stride() == x.stride()[1:]:
        return ones
    is_first = len(x) * x.stride(0) == x.numel()  # samples lie one after the other
    sample = x[:1] if ones.ndim < x.ndim and is_first else x
    return torch.empty_like(sample, dtype=torch.uint8).copy_(ones)


@cache
def _loops() -> Any:
    from fxcompress.cpu_loops import run

    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(run.address)


@cache
def _team() -> Any:
    """What calls a function in each thread of PyTorch's own team, and the addresses of what says a thread's number and
    how many there are; None where its OpenMP is not one that has GNU's calls."""
    try:
        openmp = ctypes.CDLL(None)
        parallel, asked = openmp.GOMP_parallel, (openmp.omp_get_thread_num, openmp.omp_get_num_threads)
    except (AttributeError, OSError, TypeError):
        return None
    parallel.restype = None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
    return parallel, *(ctypes.cast(function, ctypes.c_void_p).value for function in asked)
