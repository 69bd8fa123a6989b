"""What a comparison of a file in runtimes with the frozen graph found, as data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fxcompress.verify_html import write_html
from fxcompress.verify_text import text_of_verification

OFF = "onnxruntime, optimizations off"
ON = "onnxruntime, optimizations on"
OPENVINO = "openvino"
JUDGED = (OFF, ON)
"""The runtimes that `Verification.ok` is about."""

TIE, FUSION, SATURATION, OVERFLOW = "rounding tie", "fusion", "saturation", "bias overflow"
UNEXPLAINED, UPSTREAM = "unexplained", "upstream"
CAUSES = (UNEXPLAINED, OVERFLOW, SATURATION, FUSION, TIE, UPSTREAM)
"""Why an element differs, the gravest first. All but the last are of elements that differ given the runtime's own
inputs to the layer; `upstream` is of those that differ end to end only."""

SUMMATION_ULPS = 2.0**10
"""How far float outputs may differ, in units of the last place of the largest: 1e-4 of it."""


@dataclass(frozen=True)
class TensorInRuntime:
    """One quantized tensor in one runtime.

    `steps` counts elements by their difference, the runtime's integer less the graph's, given the runtime's own inputs
    to the layer; `end_to_end` does so with nothing replaced. `causes` counts the elements that differ by cause.
    """

    runtime: str
    steps: Mapping[int, int]
    end_to_end: Mapping[int, int]
    causes: Mapping[str, int]

    @property
    def elements(self) -> int:
        """How many there are."""
        return sum(self.steps.values())

    @property
    def differing(self) -> int:
        """How many differ given the runtime's own inputs."""
        return self.elements - self.steps.get(0, 0)

    @property
    def differing_end_to_end(self) -> int:
        """How many differ with nothing replaced."""
        return self.elements - self.end_to_end.get(0, 0)

    @property
    def equal(self) -> float:
        """The share that is equal given the runtime's own inputs; 1 of an empty tensor."""
        return 1 - self.differing / max(self.elements, 1)

    @property
    def largest(self) -> int:
        """The largest difference given the runtime's own inputs, in steps."""
        return max(map(abs, self.steps), default=0)

    @property
    def gravest(self) -> str | None:
        """The gravest cause among those that were found, None if every element is equal."""
        return next((cause for cause in CAUSES if self.causes.get(cause)), None)

    @property
    def is_fault(self) -> bool:
        """Whether this is more than a runtime may do: anything but rounding ties with optimizations off, and a
        difference of more than a step, an overflow or a saturation with them on. What is not judged is no fault."""
        if self.runtime == OFF:
            return self.differing > self.causes.get(TIE, 0)
        is_wrong = self.largest > 1 or any(self.causes.get(cause) for cause in (OVERFLOW, SATURATION))
        return self.runtime == ON and is_wrong


@dataclass(frozen=True)
class TensorComparison:
    """One quantized tensor in every runtime that handed it out.

    `name` is its name in the file, `module` the path of the module that yields it (of the last one before it, if a
    function does; the function's name if there is none). `equal` (share), `largest` (steps), `ties` and `unexplained`
    (elements) are those of ONNX Runtime with optimizations (off, on).
    """

    name: str
    module: str
    elements: int
    runtimes: tuple[TensorInRuntime, ...]

    @property
    def equal(self) -> tuple[float, ...]:
        """Share of equal integers, optimizations (off, on)."""
        return tuple(r.equal for r in self._judged)

    @property
    def largest(self) -> tuple[int, ...]:
        """Largest difference in steps, optimizations (off, on)."""
        return tuple(r.largest for r in self._judged)

    @property
    def ties(self) -> tuple[int, ...]:
        """Elements that differ by a rounding tie, optimizations (off, on)."""
        return tuple(r.causes.get(TIE, 0) for r in self._judged)

    @property
    def unexplained(self) -> tuple[int, ...]:
        """Elements that differ and no cause was found for, optimizations (off, on)."""
        return tuple(r.causes.get(UNEXPLAINED, 0) for r in self._judged)

    @property
    def _judged(self) -> list[TensorInRuntime]:
        return [r for r in self.runtimes if r.runtime in JUDGED]


@dataclass(frozen=True)
class OutputInRuntime:
    """One output end to end in one runtime: the share that is equal and the largest difference."""

    runtime: str
    equal: float
    largest: float


@dataclass(frozen=True)
class OutputComparison:
    """One output end to end in every runtime, in the last grid's steps where it lies on one, else in float32 units of
    the last place of its largest value.

    `equal` and `largest` are those of ONNX Runtime with optimizations (off, on). `trained` is the largest difference of
    the frozen graph from the trained net: folding and bias rounding.
    """

    name: str
    runtimes: tuple[OutputInRuntime, ...]
    unit: str
    trained: float

    @property
    def equal(self) -> tuple[float, ...]:
        """Share of equal values, optimizations (off, on)."""
        return tuple(r.equal for r in self.runtimes if r.runtime in JUDGED)

    @property
    def largest(self) -> tuple[float, ...]:
        """Largest difference, optimizations (off, on)."""
        return tuple(r.largest for r in self.runtimes if r.runtime in JUDGED)


@dataclass(frozen=True)
class Difference:
    """A quantized tensor that diverges in a runtime: the path of its module, the gravest cause, how many elements of it
    differ given the runtime's own inputs, and by how many steps at most."""

    module: str
    tensor: str
    runtime: str
    cause: str
    elements: int
    differing: int
    largest: int

    def __str__(self) -> str:
        plural = "" if self.largest == 1 else "s"
        return (
            f"'{self.module}' ({self.tensor}) in {self.runtime}: {self.cause}, {self.differing} of {self.elements} "
            f"elements differ, by at most {self.largest} step{plural}"
        )


@dataclass(frozen=True)
class Verification:
    """What was compared, what the runtime left in float, and what masks on activations cost.

    `runtimes` names what the file ran in. `changed_constants` names the integers, scales and zero points that the file
    stores otherwise than the net.
    """

    path: str
    file_bytes: int
    runtimes: tuple[str, ...]
    tensors: tuple[TensorComparison, ...]
    outputs: tuple[OutputComparison, ...]
    float_operators: tuple[str, ...]
    integer_operators: Mapping[str, int]
    mask_bytes: int
    mask_time_share: float
    changed_constants: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether ONNX Runtime agrees: every tensor is equal but for rounding ties (optimizations off), and within one
        step without overflow or saturation (on).

        Where a file has no quantized tensors its outputs must agree to float32's summation error.
        """
        if not self.tensors:
            return all(max(o.largest) <= SUMMATION_ULPS for o in self.outputs)
        return self.first_fault is None

    @property
    def first_difference(self) -> Difference | None:
        """The first quantized tensor, in the graph's order, that differs in any runtime; None if none does."""
        return self._first(lambda found: found.differing > 0)

    @property
    def first_fault(self) -> Difference | None:
        """The first quantized tensor, in the graph's order, whose difference is why `ok` is false; None if none is."""
        return self._first(lambda found: found.is_fault)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as one HTML file with plots, which loads nothing else; it appears whole or not at all.

        Raises ExportError if `path` cannot be written.
        """
        write_html(self, path)

    def __str__(self) -> str:
        return text_of_verification(self)

    def _first(self, matches: Callable[[TensorInRuntime], bool]) -> Difference | None:
        for tensor in self.tensors:
            for found in tensor.runtimes:
                if matches(found):
                    return Difference(
                        tensor.module, tensor.name, found.runtime, str(found.gravest), found.elements, found.differing,
                        found.largest,
                    )  # fmt: skip
        return None
