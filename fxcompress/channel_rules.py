"""What the rules of a spec do to channels: which groups, which masks, and the events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fxcompress.assign import Assignment
from fxcompress.channels import find_channels
from fxcompress.groups import ChannelUnit, Group, Masked, find_groups, masked_by, units
from fxcompress.module import CompressedModule
from fxcompress.rules import Prune
from fxcompress.timeline import Event
from fxcompress.timing import Phase


@dataclass(frozen=True)
class ChannelRules:
    """The masks that rules for channels need, and what their events act on, by `Event.path`."""

    masked: Masked
    units: Mapping[str, ChannelUnit]
    groups: Mapping[int, Mapping[str, Group]]
    left_alone: Mapping[str, str]

    def events(self, phase: Phase) -> Iterator[Event]:
        """The events of one rule's phase on channels; none for other rules."""
        rule = phase.rule
        if not isinstance(rule, Prune) or phase.target != "weight":
            return
        mine = self.groups.get(phase.rule_index, {})
        for place, (path, group) in enumerate(mine.items()):
            for act in phase.acts_of(place, len(mine)):
                yield Event.of(act, phase, str(group), path)


def channel_rules(net: CompressedModule, assignment: Assignment) -> ChannelRules:
    """Find the groups of channels that the rules prune.

    Raises SpecError if a rule for channels prunes none.
    """
    if not any(isinstance(rule, Prune) and rule.by_channel for rule in assignment.spec.rules):
        return ChannelRules(Masked({}, {}, {}), {}, {}, {})
    channels = find_channels(net.views())
    free = find_groups(channels)
    by_rule = assignment.channel_groups(free)
    groups = {index: {f"channels {index} {k}": g for k, g in enumerate(mine)} for index, mine in by_rule.items()}
    every = {path: group for mine in groups.values() for path, group in mine.items()}
    ruled = [(group, assignment.prune_rule(index)) for index, mine in groups.items() for group in mine.values()]
    acting = dict(zip(every, units(channels, ruled), strict=True))
    left = _left_alone(assignment, free, every.values())
    return ChannelRules(masked_by(channels, ruled), acting, groups, left)


def _left_alone(assignment: Assignment, groups: Iterable[Group], pruned: Iterable[Group]) -> dict[str, str]:
    """Why weights that a rule for channels selects keep them all."""
    done = {weight for group in pruned for weight in group.weights}
    free = {weight: group for group in groups for weight in group.weights}
    left = {}
    for weight, index in assignment.rules["prune", "weight"].items():
        if weight in done or index not in assignment.by_channel:
            continue
        others = [w for w in free[weight].weights if w != weight] if weight in free else []
        left[weight] = (
            f"its channels go with those of {', '.join(others[:3])}, which the rule does not select"
            if others
            else "its channels stay: they are outputs of the model, or what reads them mixes them"
        )
    return left
