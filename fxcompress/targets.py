"""Targets: what a runtime can load and compute, as data."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.errors import SpecError
from fxcompress.spec import Spec


@dataclass(frozen=True)
class Target:
    """A runtime. `symmetric_activations_only`: it needs zero point 0."""

    name: str
    symmetric_activations_only: bool = False


TARGETS = {t.name: t for t in (Target("onnxruntime"),)}


def check_target(spec: Spec, name: str) -> Target:
    """The target called `name`. Raises SpecError if it is unknown or cannot compute what `spec` asks for."""
    if name not in TARGETS:
        raise SpecError(f"unknown target '{name}'; known targets: {', '.join(TARGETS)}")
    for index, rule in enumerate(spec.rules):
        if rule.op == "quantize" and "weight" in rule.target and rule.symmetric is False:
            raise SpecError(
                f"rule {index + 1} '{rule}' asks for affine weights, which target '{name}' has no integer kernels for; "
                "leave 'symmetric' out"
            )
    return TARGETS[name]
