"""When each rule of a spec acts: the spec's times, or the order of its rules, as optimizer steps.

A step is a completed optimizer step; the event of step k acts after the k-th. Rules without a start share the time that
the rules with one leave free, in the order of the list; all of it is done by 80 % of training, so that the rest is
recovery. Times between two steps go to the nearest, halves to the even one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from fxcompress.errors import SpecError
from fxcompress.fields import Target
from fxcompress.rules import Prune, Quantize
from fxcompress.spec import Spec

RECOVERY_START = Fraction(80, 100)  # of training; rules without times are done by then


class Length(NamedTuple):
    """How long a training is: its optimizer steps, and those of an epoch, as far as they are known."""

    total_steps: int | None
    steps_per_epoch: int | None = None


@dataclass(frozen=True)
class Act:
    """What happens after one step; `value` is a sparsity, `is_last` tells that the mask will not change again."""

    step: int
    action: str
    value: float = 0.0
    is_last: bool = False


@dataclass(frozen=True)
class Phase:
    """One rule on one of its targets, with the step of each of its events, ascending.

    `more` is what a rule that prunes does besides its ramp.
    """

    rule_index: int
    rule: Prune | Quantize
    target: Target
    steps: tuple[int, ...]
    more: tuple[Act, ...] = ()

    def acts_of(self, place: int = 0, count: int = 1) -> list[Act]:
        """What happens to the tensor at `place` of the `count` that the rule selects."""
        if isinstance(self.rule, Quantize):
            return [Act(self.steps[0], "quantize")]
        steps, levels = self._ramp_of(place, count), self.rule.levels()
        acts = [Act(step, "prune", level) for step, level in zip(steps, levels, strict=True)]
        acts += [act for act in self.more if act.action == "refresh"]
        acts[-1] = replace(acts[-1], is_last=True)
        remembered = [act for act in self.more if act.action == "remember"]
        rewound = [Act(acts[-1].step, "rewind")] if remembered else []
        return [*remembered, *acts, *rewound, *(act for act in self.more if act.action == "release")]

    def _ramp_of(self, place: int, count: int) -> tuple[int, ...]:
        if not isinstance(self.rule, Prune) or self.rule.sequence == "together":
            return self.steps
        # One tensor after another, each with its whole ramp (Appl. Sci. 2022, 12, 7829).
        first, last, levels = self.steps[0], self.steps[-1], len(self.rule.levels())
        gaps = max(count * levels - 1, 1)
        return tuple(
            round(first + Fraction((last - first) * (place * levels + event), gaps)) for event in range(levels)
        )


def plan(spec: Spec, total_steps: int | None, steps_per_epoch: int | None = None) -> tuple[Phase, ...]:
    """Give every rule and target its steps: one phase each, in the order of the list, weights before activations.

    `total_steps` is the length of training in optimizer steps; it may be None where every rule says its steps itself.
    `steps_per_epoch` is needed where times are in epochs. Raises `SpecError` for a time past the end, times that
    contradict each other, and a missing or wrong `total_steps` or `steps_per_epoch`.
    """
    clock = _Clock(spec, _checked_count("total_steps", total_steps), _checked_count("steps_per_epoch", steps_per_epoch))
    clock.check_arrows()
    phases: list[Phase] = []
    index = 0
    while index < len(spec.rules):
        if clock.start(index) is None:
            run = clock.untimed_run(index)
            phases += _spread(clock, run, latest=max((phase.steps[-1] for phase in phases), default=0))
            index = run.stop
        else:
            rule, steps = spec.rules[index], _timed_steps(clock, index)
            more = _more(clock, index, steps)
            phases += [Phase(index, rule, target, steps, more) for target in rule.target]
            index += 1
    return tuple(phases)


def _checked_count(name: str, given: int | None) -> int | None:
    if given is None:
        return None
    try:
        count = 0 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        count = 0
    if count < 1:
        raise SpecError(f"{name} is {given!r}; it must be a whole number of optimizer steps, 1 or more")
    return count


class _Clock:
    """The explicit times of a spec as steps of one training, each checked against its length."""

    def __init__(self, spec: Spec, total: int | None, per_epoch: int | None) -> None:
        self.spec, self.total, self.per_epoch = spec, total, per_epoch
        self._starts = [self.step(index, "start") for index in range(len(spec.rules))]

    def start(self, index: int) -> int | None:
        return self._starts[index]

    def end(self, index: int) -> int | None:
        return self.step(index, "end")

    def untimed_run(self, index: int) -> range:
        """The rules from `index` on that have no start."""
        following = range(index, len(self._starts))
        return range(index, next((at for at in following if self._starts[at] is not None), len(self._starts)))

    def next_start(self, index: int, after: int = -1) -> int | None:
        """The start of the first rule behind `index` that has one later than step `after`."""
        return next((step for step in self._starts[index + 1 :] if step is not None and step > after), None)

    def bound(self, index: int, after: int) -> Fraction:
        """The end of the time left for rule `index` when no later rule says it: 80 % of training, or all of it."""
        total = self.need_total(index, "has no end", " (or give its ramp an 'end')")
        return total * RECOVERY_START if after < total * RECOVERY_START else Fraction(total)

    def need_total(self, index: int, why: str, fix: str = "") -> int:
        if self.total is None:
            raise SpecError(f"{self.name(index)} {why}; pass total_steps=, the optimizer steps of the training{fix}")
        return self.total

    def name(self, index: int) -> str:
        return f"rule {index + 1} '{self.spec.rules[index]}'"

    def check_arrows(self) -> None:
        """Refuse notation whose times, now all in steps, contradict its arrows."""
        timed = [(step, index) for index, step in enumerate(self._starts) if step is not None]
        for (before, first), (after, second) in pairwise(timed):
            if self.spec.from_arrows and after < before:
                raise SpecError(
                    f"{self.name(second)} starts at step {after}, before {self.name(first)}, which starts at step "
                    f"{before} of total_steps={self.total}, against the arrow between them; swap them or move a time"
                )

    def step(self, index: int, field: str) -> int | None:
        """The step of one of a rule's times, None if it has none."""
        time: int | str | None = getattr(self.spec.rules[index], field, None)
        if isinstance(time, str) and time.endswith("%"):
            total = self.need_total(index, f"gives its {field} as {time} of training")
            share = Fraction(time.removesuffix("%")) / 100
            return max(1, round(share * total)) if share else 0  # only who asks for step 0 gets it
        if isinstance(time, str):
            time = self._of_epochs(index, field, time)
        if time is not None and self.total is not None and time > self.total:
            raise SpecError(
                f"{self.name(index)}: '{field}' is step {time}, past total_steps={self.total}; "
                f"write a step up to {self.total}, or a percentage of training"
            )
        return time

    def _of_epochs(self, index: int, field: str, time: str) -> int:
        if self.per_epoch is None:
            raise SpecError(
                f"{self.name(index)} gives its {field} as {time}; pass steps_per_epoch=, the optimizer steps of "
                "an epoch"
            )
        epochs = Fraction(time.removesuffix("ep"))
        return max(1, round(epochs * self.per_epoch)) if epochs else 0


def _timed_steps(clock: _Clock, index: int) -> tuple[int, ...]:
    """The events of a rule with a start: evenly from start to end, or to where the next rule begins."""
    rule, start = clock.spec.rules[index], clock.start(index)
    assert start is not None
    count = _events(rule)
    end = clock.end(index)
    if isinstance(rule, Prune) and rule.sequence == "front-to-back" and end is not None:
        count = max(count, 2)
    if count == 1:
        return (start,)
    if isinstance(rule, Prune) and rule.interval is not None and end is None:
        return tuple(start + rule.interval * event for event in range(count))
    if end is None:
        next_start = clock.next_start(index, after=start)
        bound = clock.bound(index, start) if next_start is None else Fraction(next_start)
        return tuple(round(start + (bound - start) * event / count) for event in range(count))
    if end < start:
        raise SpecError(
            f"{clock.name(index)} ends at step {end}, before it starts at step {start} of total_steps={clock.total}; "
            "move its start or its end"
        )
    return tuple(round(start + Fraction((end - start) * event, count - 1)) for event in range(count))


def _more(clock: _Clock, index: int, steps: tuple[int, ...]) -> tuple[Act, ...]:
    """What a rule that prunes does besides its ramp, whose events are at `steps`."""
    rule = clock.spec.rules[index]
    if not isinstance(rule, Prune):
        return ()
    until, release, rewind = (clock.step(index, key) for key in ("until", "release", "rewind"))
    if clock.total is not None and steps[-1] > clock.total:
        raise SpecError(f"{clock.name(index)}: its ramp ends at step {steps[-1]}, past total_steps={clock.total}")
    acts = []
    if until is not None and rule.interval is not None:
        if until < steps[-1]:
            raise SpecError(f"{clock.name(index)}: 'until' is step {until}, before its ramp ends at step {steps[-1]}")
        acts += [Act(s, "refresh", rule.share) for s in range(steps[-1] + rule.interval, until + 1, rule.interval)]
    if rewind is not None:
        if rewind > steps[-1]:
            raise SpecError(f"{clock.name(index)}: 'rewind' is step {rewind}, after its ramp ends at step {steps[-1]}")
        acts.append(Act(rewind, "remember"))
    if release is not None:
        last = max([steps[-1], *(act.step for act in acts)])
        if release <= last:
            raise SpecError(f"{clock.name(index)}: 'release' is step {release}; its mask is chosen until step {last}")
        acts.append(Act(release, "release"))
    return tuple(acts)


def _spread(clock: _Clock, run: range, latest: int) -> Iterator[Phase]:
    """Space the events of rules without a start evenly between the last event before them and the next start."""
    first = run.start
    total = clock.need_total(first, "has no start", " (or give every rule a start in steps)")
    next_start = clock.next_start(run.stop - 1)
    if next_start is not None and next_start < max(latest, 1):
        raise SpecError(
            f"{clock.name(first)} has no start, and there is no time for it between step {latest} and "
            f"{clock.name(run.stop)}, which starts at step {next_start}; give it a start, or move the other"
        )
    phases = [(index, target) for index in run for target in clock.spec.rules[index].target]
    events = sum(_events(clock.spec.rules[index]) for index, _ in phases)
    bound = clock.bound(first, latest) if next_start is None else Fraction(next_start)
    gap = (bound - latest) / (events if next_start is None else events + 1)
    last = total if next_start is None else next_start
    steps = iter([min(max(round(latest + gap * event), latest + 1), last) for event in range(1, events + 1)])
    for index, target in phases:
        rule = clock.spec.rules[index]
        yield Phase(index, rule, target, tuple(next(steps) for _ in range(_events(rule))))


def _events(rule: Prune | Quantize) -> int:
    return len(rule.levels()) if isinstance(rule, Prune) else 1
