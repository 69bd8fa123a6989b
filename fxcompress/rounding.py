"""How a tensor is rounded, as kernels take it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-float("inf"), float("inf"))
LEAST = 1e-30
"""No step that a bias is rounded to is less."""


class Rounding:
    """`x` is bounded to `within`, multiplied by `mask`, and put on the grid of `scale` from the first of `ends` to the
    last.

    `scale`, float32, and `mask`, bool, broadcast against `x`, and so does `zero_point`, int32, where it is not a
    number. The gradient is one where the integer is within the ends and `x` within the bounds, not at them, and zero
    elsewhere; it is multiplied by the mask if it is not `is_dense`. Without a scale (on CPUs) there is a mask, and that
    is all. It serves for as long as the tensors stay the same
    ones, whatever they hold; kernels leave in `prepared` what they made of them. `of` is what `scale` is a view of, and
    `overwrites` whether nobody sees it if the result takes the memory of `x`.
    """

    __slots__ = ("ends", "is_dense", "mask", "of", "overwrites", "prepared", "scale", "within", "zero_point")

    def __init__(  # noqa: PLR0913 - all that a value depends on
        self,
        scale: Tensor | None,
        zero_point: Tensor | int = 0,
        ends: tuple[int, int] = (0, 0),
        mask: Tensor | None = None,
        is_dense: bool = False,
        within: Bounds = UNBOUNDED,
    ) -> None:
        self.scale, self.zero_point, self.ends = scale, zero_point, ends
        self.mask, self.is_dense, self.within = mask, is_dense, within
        self.prepared: Any = None
        self.of, self.overwrites = scale, False


IDLE = Rounding(None)
"""Of what is neither pruned nor quantized now, nor looked at."""
