"""A verification as text for a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from fxcompress.tables import text_of

if TYPE_CHECKING:
    from fxcompress.comparison import OutputComparison, TensorInRuntime, Verification


def text_of_verification(found: Verification) -> str:
    """The tensors that differ, then the verdict, outputs, operators and costs."""
    table = Table(title=f"{found.path}: {found.file_bytes / 1e6:.3f} MB against the frozen graph")
    for column in ("quantized tensor", "runtime", "differ", "largest", "end to end", "causes"):
        is_number = column in ("differ", "largest", "end to end")
        table.add_column(column, justify="right" if is_number else "left")
    for tensor in found.tensors:
        for one in tensor.runtimes:
            if one.differing:
                differing = (share(one.differing, one.elements), share(one.differing_end_to_end, one.elements))
                largest = f"{one.largest} step{'' if one.largest == 1 else 's'}"
                runtime = one.runtime.replace("optimizations ", "")
                table.add_row(tensor.name, runtime, differing[0], largest, differing[1], causes_of(one))
    return text_of(table if len(table.rows) else None, [*summary(found), *found.notes])


def summary(found: Verification) -> Iterator[str]:
    """What was found, a line each: verdict, tensors, outputs, operators, masks."""
    yield verdict(found)
    if found.tensors:
        yield f"first difference: {found.first_difference or 'none'}"
    if found.first_fault not in (None, found.first_difference):
        yield f"first fault: {found.first_fault}"
    for i, runtime in enumerate(found.runtimes):
        of = [one for tensor in found.tensors for one in tensor.runtimes if one.runtime == runtime]
        equal = sum(not one.differing for one in of), sum(not one.differing_end_to_end for one in of)
        if of:
            yield (
                f"{runtime}: {equal[0]} of {len(of)} quantized tensors equal in every element given its own inputs, "
                f"{equal[1]} end to end"
            )
        yield from (f"{runtime}: {_output(output, i)}" for output in found.outputs)
    for output in found.outputs:
        yield f"output '{output.name}', frozen against trained: {output.trained:g} {output.unit}"
    if found.changed_constants:
        yield f"constants that the file stores otherwise than the net: {', '.join(found.changed_constants)}"
    counts = ", ".join(f"{n} {name}" for name, n in found.integer_operators.items())
    yield f"integer operators: {counts or 'none'}; left in float: {', '.join(found.float_operators) or 'none'}"
    if found.mask_bytes:
        yield (
            f"masks on activations cost {found.mask_bytes / 1e6:.3f} MB of the file and "
            f"{100 * found.mask_time_share:.0f} % of the run time: a general runtime multiplies by unstructured zeros, "
            "it does not skip them"
        )


def verdict(found: Verification) -> str:
    """Whether ONNX Runtime agrees, in a line."""
    if found.ok:
        return "ok: ONNX Runtime agrees with the frozen graph"
    if found.tensors:
        return "not ok: ONNX Runtime computes otherwise than the frozen graph"
    return "not ok: outputs differ by more than float32's summation error"


def causes_of(one: TensorInRuntime) -> str:
    """The causes of a tensor's differences and how many elements each has."""
    return ", ".join(f"{cause} {count}" for cause, count in one.causes.items())


def share(count: int, of: int) -> str:
    """A count as a percentage that is 0 only for none."""
    percent = 100 * count / max(of, 1)
    return "0" if not count else "< 0.001 %" if percent < 0.001 else f"{percent:.3f} %"


def _output(output: OutputComparison, i: int) -> str:
    one = output.runtimes[i]
    return f"output '{output.name}' end to end: {100 * one.equal:.2f} % equal, largest {one.largest:g} {output.unit}"
