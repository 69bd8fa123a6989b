"""What every rule of a spec says: which tensors, and from when on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer

from fxcompress.fields import Checked, Match, Targets, Time, one_or_list, read_match
from fxcompress.notation import to_flow, to_item

_FIRST_KEYS = ("op", "target", "sparsity", "bits", "start", "end")


class Rule(Checked):
    """What every rule says: which tensors, and from when on. `str(rule)` is its notation where that can say it."""

    target: Targets = Field(description="weight, activation or both: the tensors the rule acts on")
    start: Time = Field(
        None,
        description="a step, a percentage such as 40% or epochs such as 12ep: when it starts; by default its place in "
        "the list decides",
    )
    match: Annotated[Match | None, BeforeValidator(read_match)] = Field(
        None, description="a mapping with type, name or both: only tensors that match are taken"
    )
    exclude: Annotated[Match | None, BeforeValidator(read_match)] = Field(
        None, description="a mapping with type, name or both: tensors that match are left alone"
    )

    _plain = field_serializer("target")(one_or_list)

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain data: `op` and every field that is not at its default."""
        data = {"op": getattr(self, "op", None), **self.model_dump(exclude_defaults=True, exclude_none=True)}
        return {key: data[key] for key in (*_FIRST_KEYS, *data) if key in data}

    def __str__(self) -> str:
        return to_item(self.to_dict()) or to_flow(self.to_dict())
