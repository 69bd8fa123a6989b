"""What the rules of a spec do to channels: which groups, which masks, and the events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    def events(self, phase: Phase) -> Iterator[Event]:
        """The events of one rule's phase on channels; none for other rules."""
        rule = phase.rule
        if not isinstance(rule, Prune) or phase.target != "weight":
            return
        for step, level in zip(phase.steps, rule.levels(), strict=True):
            for path, group in self.groups.get(phase.rule_index, {}).items():
                yield Event(step, str(group), "weight", "prune", level, path, phase.rule_index, rule.window)


def channel_rules(net: CompressedModule, assignment: Assignment) -> ChannelRules:
    """Find the groups of channels that the rules prune.

    Raises SpecError if a rule for channels prunes none.
    """
    if not any(isinstance(rule, Prune) and rule.by_channel for rule in assignment.spec.rules):
        return ChannelRules(Masked({}, {}), {}, {})
    channels = find_channels(net.views())
    by_rule = assignment.channel_groups(find_groups(channels))
    groups = {index: {f"channels {index} {k}": g for k, g in enumerate(mine)} for index, mine in by_rule.items()}
    every = {path: group for mine in groups.values() for path, group in mine.items()}
    acting = dict(zip(every, units(channels, every.values()), strict=True))
    return ChannelRules(masked_by(channels, every.values()), acting, groups)
