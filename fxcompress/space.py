"""What a search chooses among: orders, times, sparsities, bits and composition of a spec's rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, Protocol

from fxcompress.arms import percent
from fxcompress.errors import SpecError
from fxcompress.rules import Prune, Quantize
from fxcompress.spec import Spec

MOST_PARTS = 5


class Chooser(Protocol):
    """What makes a choice by name, such as an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """A number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""


@dataclass(frozen=True)
class Space:
    """The specs that a search may try.

    Args:
        spec: rules without times, such as "P0.5(w,f) -> Q8(w,f)"; each rule on each of its targets is one part.
        start, end: the window that all events lie in, in percent of training.
        orders: "any" order of the parts, or "given": that of `spec`.
        sparsity: a range (low, high) that each rule that prunes chooses from, None to leave it.
        bits: numbers that each rule that quantizes chooses from, None to leave them.
        compositions: whether it is chosen, for weights and for activations, if pruning acts on the quantized value.

    Raises SpecError, quoting what is wrong.
    """

    spec: Any
    start: str = "5%"
    end: str = "80%"
    orders: str = "any"
    sparsity: tuple[float, float] | None = None
    bits: tuple[int, ...] | None = None
    compositions: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", Spec.of(self.spec))
        if problem := next(self._problems(), None):
            raise SpecError(problem)

    def _problems(self) -> Iterator[str]:
        timed = [rule for rule in self.spec.rules if rule.start is not None]
        if timed:
            yield f"'{timed[0]}' has a start, which the search chooses; drop it"
        if self.orders not in ("any", "given"):
            yield f"orders is {self.orders!r}; it must be 'any' or 'given'"
        if len(self.parts) > MOST_PARTS and self.orders == "any":
            orders = math.factorial(len(self.parts))
            yield f"'{self.spec}' has {len(self.parts)} parts in {orders} orders; pass orders='given', or fewer rules"
        window = [percent(name, value) for name, value in (("start", self.start), ("end", self.end))]
        if window[0] >= window[1]:
            yield f"end is '{self.end}', not later than start '{self.start}'; move one of them"
        if self.sparsity is not None and not 0 <= self.sparsity[0] <= self.sparsity[1] < 1:
            yield f"sparsity is {self.sparsity!r}; write a range such as (0.3, 0.7)"

    @cached_property
    def parts(self) -> tuple[tuple[Prune | Quantize, str], ...]:
        """Every rule on every one of its targets."""
        return tuple((rule, target) for rule in self.spec.rules for target in rule.target)

    @cached_property
    def order_names(self) -> dict[str, tuple[int, ...]]:
        """All orders of the parts by name, such as 'P(w) Q(w) Q(f)'."""
        places = range(len(self.parts))
        chosen = permutations(places) if self.orders == "any" else [tuple(places)]
        return {" ".join(_letter(*self.parts[i]) for i in order): order for order in chosen}

    def choose(self, chooser: Chooser) -> Spec:
        """A spec of the space."""
        names = list(self.order_names)
        order = self.order_names[chooser.suggest_categorical("order", names) if len(names) > 1 else names[0]]
        times = self._times(chooser, len(order))
        composed = self._compositions(chooser)
        amounts = self._amounts(chooser)
        rules = []
        for place, part in enumerate(order):
            rule, target = self.parts[part]
            fields: dict[str, Any] = {
                **rule.to_dict(),
                "target": target,
                "start": _percent(times[place]),
                **amounts[part],
            }
            if isinstance(rule, Prune):
                if len(rule.levels()) > 1:
                    fields["end"] = _percent(times[place] + 0.9 * (times[place + 1] - times[place]))
                fields |= composed.get(target, {})
            rules.append(type(rule)(**fields))
        return Spec(rules=rules)

    def _times(self, chooser: Chooser, count: int) -> list[float]:
        """When each part begins, and where the last may end: gaps of chosen lengths fill the window."""
        gaps = [chooser.suggest_float(f"gap {k}", 0.05, 1.0) for k in range(count + 1)]
        start, end = float(percent("start", self.start)), float(percent("end", self.end))
        return [start + (end - start) * sum(gaps[: k + 1]) / sum(gaps) for k in range(count)] + [end]

    def _amounts(self, chooser: Chooser) -> list[dict[str, Any]]:
        """By part, the sparsity or bits that its rule gets; chosen once for each part."""
        found: list[dict[str, Any]] = []
        for rule, target in self.parts:
            name = _letter(rule, target)
            if isinstance(rule, Prune) and self.sparsity is not None:
                found.append({"sparsity": round(chooser.suggest_float(f"sparsity {name}", *self.sparsity), 3)})
            elif isinstance(rule, Quantize) and self.bits is not None:
                found.append({"bits": chooser.suggest_categorical(f"bits {name}", list(self.bits))})
            else:
                found.append({})
        return found

    def _compositions(self, chooser: Chooser) -> dict[str, dict[str, str]]:
        if not self.compositions:
            return {}
        targets = dict.fromkeys(target for rule, target in self.parts if isinstance(rule, Prune))
        choices = ["q(p(x))", "p(q(x))"]
        return {t: {"composition": chooser.suggest_categorical(f"composition {t}", choices)} for t in targets}


def _letter(rule: Prune | Quantize, target: str) -> str:
    return f"{'P' if isinstance(rule, Prune) else 'Q'}({'w' if target == 'weight' else 'f'})"


def _percent(share: float) -> str:
    return f"{share:.2f}".rstrip("0").rstrip(".") + "%"
