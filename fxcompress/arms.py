"""Specs to compare: orders with matched times."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from fxcompress.errors import SpecError
from fxcompress.rules import Prune, Quantize
from fxcompress.spec import Spec


def matched_arms(orders: Mapping[str, object], start: str = "20%", end: str = "60%") -> dict[str, Spec]:
    """The same window of training for each of several orders, by name.

    Args:
        orders: specs without times by name, such as {"prune first": "P0.5(w,f) -> Q8(w,f)"}.
        start: when the first event of each arm acts, in percent of training.
        end: when the last one does; what is left is recovery, as long in every arm.

    All events of an arm are spaced evenly from `start` to `end`, in the order of its rules, weights before activations.
    Raises SpecError for a rule with times, or an end that is not later.
    """
    first, last = percent("start", start), percent("end", end)
    if last <= first:
        raise SpecError(f"end is '{end}', not later than start '{start}'; move one of them")
    return {name: _spaced(name, Spec.of(order), first, last) for name, order in orders.items()}


def at_once(order: object, start: str = "20%", end: str = "60%") -> Spec:
    """All rules of a spec without times from `start` on; ramps rise until `end`. Raises as `matched_arms` does."""
    rules = [rule for rule in Spec.of(order).rules if not _refuse_times("at once", rule)]
    percent("start", start), percent("end", end)
    return Spec(rules=[_timed(rule, start, end if _events(rule) > 1 else None) for rule in rules])


def percent(name: str, value: str) -> Fraction:
    """A share of training such as "20%", in percent. Raises SpecError, naming it, for anything else."""
    try:
        share = Fraction(str(value).removesuffix("%"))
    except ValueError:
        share = Fraction(-1)
    if not str(value).endswith("%") or not 0 <= share <= 100:
        raise SpecError(f"{name} is {value!r}; write a share of training such as '20%'")
    return share


def _spaced(name: str, spec: Spec, first: Fraction, last: Fraction) -> Spec:
    parts = [(rule, target) for rule in spec.rules if not _refuse_times(name, rule) for target in rule.target]
    gap = (last - first) / max(sum(_events(rule) for rule, _ in parts) - 1, 1)
    rules, done = [], 0
    for rule, target in parts:
        begin, done = first + gap * done, done + _events(rule)
        end = first + gap * (done - 1)
        one = type(rule)(**{**rule.to_dict(), "target": target})
        rules.append(_timed(one, _text(begin), _text(end) if end > begin else None))
    if len(parts) == 1 and _events(parts[0][0]) == 1:
        rules = [_timed(rules[0], _text(last), None)]  # a single event acts where the others have their last
    return Spec(rules=rules)


def _timed(rule: Prune | Quantize, start: str, end: str | None) -> Prune | Quantize:
    return type(rule)(**{**rule.to_dict(), "start": start, **({"end": end} if end else {})})


def _text(percent: Fraction) -> str:
    return f"{float(percent):.4f}".rstrip("0").rstrip(".") + "%"


def _events(rule: Prune | Quantize) -> int:
    return len(rule.levels()) if isinstance(rule, Prune) else 1


def _refuse_times(name: str, rule: Prune | Quantize) -> bool:
    if rule.start is not None:
        raise SpecError(
            f"arm '{name}' has times in '{rule}'; matched arms get theirs from 'start' and 'end': drop them"
        )
    return False
