"""Targets: what a runtime can load and compute, as data, and the grids that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxcompress.errors import SpecError
from fxcompress.grid import Grid
from fxcompress.ranges import Calibration
from fxcompress.rules import Quantize
from fxcompress.spec import Spec

ALL_BITS = frozenset(range(2, 17))


@dataclass(frozen=True)
class Target:
    """A runtime: the widths that it can load (`weight_bits`, of blocks `block_bits`, `activation_bits`), what else it
    takes, and what it computes on integers; the rest runs in float, which the timeline says.

    `signed_activations`: what activations are where a rule does not say. `weight_range_bits`: 8-bit weights use the
    integers of so many bits alone, since the kernels add pairs of products in 16 bits. `adds_in_products`: a product
    adds what comes along a shortcut before it rounds, so its own result has no grid there. `integer_gates`: SiLU is a
    sigmoid on a grid and a multiplication. `narrowest_types`:
    the narrowest integers that a file may hold of weights and of activations; narrower ones go in those (ONNX Runtime
    1.32 loads 4-bit activations, but not behind a ReLU6, and no 2-bit integers that its kernels could fuse).
    """

    name: str
    weight_bits: frozenset[int] = ALL_BITS
    activation_bits: frozenset[int] = ALL_BITS
    block_bits: frozenset[int] = frozenset(range(2, 9))
    affine_activations: bool = True
    affine_weights: bool = False
    unsigned_weights: bool = False
    signed_activations: bool = False
    unsigned_activations: bool = True
    integer_weight_bits: frozenset[int] = frozenset(range(5, 9))
    integer_activation_bits: frozenset[int] = frozenset(range(2, 9))
    weight_range_bits: int = 16
    narrowest_types: tuple[int, int] = (4, 8)
    adds_in_products: bool = False
    integer_gates: bool = False


_OPENVINO_BITS = frozenset({4, 5, 6, 7, 8})
TARGETS = {
    t.name: t
    for t in (
        Target("onnxruntime", integer_gates=True),
        Target("onnxruntime-avx2", integer_gates=True, weight_range_bits=7),
        Target("openvino", weight_bits=_OPENVINO_BITS, activation_bits=frozenset({8}), block_bits=frozenset({4, 8}),
               integer_activation_bits=frozenset({8})),
        Target("tensorrt", weight_bits=frozenset(range(5, 9)), activation_bits=frozenset({8}),
               block_bits=frozenset({4}), affine_activations=False, signed_activations=True,
               unsigned_activations=False, adds_in_products=True),
        Target("generic", affine_weights=True, unsigned_weights=True, integer_weight_bits=ALL_BITS,
               integer_activation_bits=ALL_BITS, narrowest_types=(2, 2)),
    )
}  # fmt: skip


def check_target(spec: Spec, name: str) -> Target:
    """The target called `name`. Raises SpecError if it is unknown or cannot compute what `spec` asks for."""
    if name not in TARGETS:
        raise SpecError(f"unknown target '{name}'; known targets: {', '.join(TARGETS)}")
    target = TARGETS[name]
    for index, rule in enumerate(spec.rules):
        for what, fix in _refusals(rule, target) if isinstance(rule, Quantize) else ():
            raise SpecError(f"rule {index + 1} '{rule}' asks for {what}, which target '{name}' cannot compute; {fix}")
    return target


def _refusals(rule: Quantize, target: Target) -> Iterator[tuple[str, str]]:
    """What a rule asks for and the target cannot do, each with how to mend it."""
    wanted = {rule.bits} | {rule.bits_for(True)}
    if "weight" in rule.target:
        able = target.block_bits if rule.block else target.weight_bits
        if bad := sorted(wanted - able):
            kind = "weights in blocks" if rule.block else "weights"
            yield f"{kind} of {bad[0]} bits", f"it takes {_listed(able)}: change 'bits' or 'first_last_bits'"
        if rule.symmetric is False and not target.affine_weights:
            yield "affine weights, with a zero point", "leave 'symmetric' out for weights"
        if rule.signed is False and not target.unsigned_weights:
            yield "unsigned weights", "leave 'signed' out for weights"
    if "activation" in rule.target:
        if bad := sorted(wanted - target.activation_bits):
            yield f"activations of {bad[0]} bits", f"it takes {_listed(target.activation_bits)}: change 'bits'"
        if rule.symmetric is False and not target.affine_activations:
            yield "affine activations, with a zero point", "leave 'symmetric' out for activations"
        if rule.signed is False and not target.unsigned_activations:
            yield "unsigned activations", "leave 'signed' out for activations"


def calibration(rule: Quantize) -> Calibration:
    """How a rule's scale follows from what is seen; three levels or two take the least squared error."""
    if rule.grid != "uniform":
        return Calibration("mse", "float")
    scale = "float" if rule.scale == "learned" else rule.scale
    if isinstance(rule.range, str):
        return Calibration(rule.range, scale)
    return Calibration("quantile", scale, rule.range)


def weight_grid(rule: Quantize, is_edge: bool, target: Target) -> Grid:
    """The grid of a weight: signed and symmetric unless the rule says otherwise, and always narrow."""
    bits = (
        min(rule.bits_for(is_edge), target.weight_range_bits) if rule.bits_for(is_edge) <= 8 else rule.bits_for(is_edge)
    )
    if rule.grid != "uniform":
        return Grid(2, signed=True, symmetric=True, narrow=True, binary=rule.grid == "binary")
    return Grid(bits, rule.signed is not False, rule.symmetric is not False, narrow=True)


def activation_grid(rule: Quantize, is_edge: bool, target: Target) -> Grid:
    """The grid of an activation: affine and unsigned where neither rule nor target say otherwise."""
    signed = target.signed_activations if rule.signed is None else rule.signed
    symmetric = not target.affine_activations if rule.symmetric is None else rule.symmetric
    return Grid(rule.bits_for(is_edge), signed, symmetric)


def notes_on(spec: Spec, target: Target) -> Iterator[str]:
    """What the target computes in float, or with fewer integers, of what `spec` asks for."""
    for index, rule in enumerate(spec.rules):
        if not isinstance(rule, Quantize):
            continue
        where = f"rule {index + 1} '{rule}': target '{target.name}'"
        if "weight" in rule.target and (rule.block or rule.bits not in target.integer_weight_bits):
            what = f"scales for blocks of {rule.block}" if rule.block else f"weights of {rule.bits} bits"
            yield f"{where} stores {what} and computes their products in float"
        if "activation" in rule.target and rule.bits not in target.integer_activation_bits:
            yield f"{where} stores activations of {rule.bits} bits and computes with them in float"
        if "weight" in rule.target and target.weight_range_bits < rule.bits_for(True) <= 8:
            bits = target.weight_range_bits
            yield f"{where} uses {bits} bits of wider weights, so that no sum of two products leaves 16 bits"


def _listed(bits: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(bits))) + " bits" if len(bits) < 15 else "2 to 16 bits"
