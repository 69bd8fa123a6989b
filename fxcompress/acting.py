"""What the events of one step do, in their order: prune, go back, release, quantize."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.constants import evaluate
from fxcompress.errors import ScheduleError
from fxcompress.graph import COMPRESSION
from fxcompress.masks import kept_of_all
from fxcompress.module import CompressedModule
from fxcompress.quantizer import Quantizer
from fxcompress.sharded import write
from fxcompress.timeline import Event
from fxcompress.units import Unit

PRUNES = ("prune", "refresh")


@torch.no_grad()
def act(net: CompressedModule, units: Mapping[str, Unit], due: Iterable[Event]) -> None:
    """Let events of one step act. `units` are what those that prune act on, by `Event.path`."""
    sources = sources_of(net)
    for (action, _), group in groupby(due, key=lambda event: (event.action in PRUNES, event.rule)):
        events = list(group)
        if action:
            _prune(net, [units[e.path] for e in events], events, sources)
            continue
        for event in events:
            _act_alone(net, event, units, sources)


def observers(event: Event, units: Mapping[str, Unit]) -> tuple[str, ...]:
    """The pruners or the quantizer that observe before an event; none where nothing has to be seen."""
    if event.action not in (*PRUNES, "quantize"):
        return ()
    if event.kind == "activation":
        return (event.path,)
    unit = units.get(event.path)
    return unit.pruners if unit is not None and unit.rule.needs_gradient else ()


def acted_on(net: CompressedModule, units: Mapping[str, Unit], due: Iterable[Event]) -> list[nn.Module]:
    """The pruners and quantizers that these events write to."""
    pruners = [p for e in due if e.path in units for p in units[e.path].all_pruners(net)]
    return list(dict.fromkeys([*pruners, *(net.get_submodule(e.path) for e in due if e.action == "quantize")]))


def sources_of(net: CompressedModule) -> dict[str, Any]:
    """What each pruner and quantizer is called on."""
    calls = (n for g in net.graphs for n in g.nodes if n.op == "call_module")
    return {str(n.target): n.args[0] for n in calls if str(n.target).startswith(f"{COMPRESSION}.")}


def _prune(net: CompressedModule, units: list[Unit], events: list[Event], sources: Mapping[str, Any]) -> None:
    """Choose the masks of what one rule prunes at one step, together where its scope is global."""
    rule, level = units[0].rule, events[0].value
    _refuse_unseen(net, units, events[0])
    # One after the other: scores are as large as the weights, and held together only where they are compared.
    scores = (_scores(net, unit, event, sources) for unit, event in zip(units, events, strict=True))
    if rule.scope == "global":
        masks = kept_of_all(list(scores), level, rule.floor)
    else:
        masks = [unit.choose(s, event.value) for unit, s, event in zip(units, scores, events, strict=True)]
    for unit, event, mask in zip(units, events, masks, strict=True):
        unit.keep(net, mask)
        for pruner in unit.all_pruners(net):
            pruner.observing = False
            if event.is_last:
                pruner.freeze()


def _scores(net: CompressedModule, unit: Unit, event: Event, sources: Mapping[str, Any]) -> Tensor:
    paths = unit.pruners if event.kind == "weight" else ()
    values: dict[str, Tensor] = {path: evaluate(net, sources[path]) for path in paths}
    return unit.scores(net, values, f"{event.tensor} {event.step}")


def _refuse_unseen(net: CompressedModule, units: list[Unit], event: Event) -> None:
    """Refuse to judge by gradients where no tensor had any; a single one may have none, such as one of zeros."""
    rule = units[0].rule
    pruners: list[Any] = [net.get_submodule(path) for unit in units for path in unit.pruners]
    if rule.needs_gradient and not any(pruner.has_observed for pruner in pruners):
        raise ScheduleError(
            f"rule {event.rule + 1} '{rule}' prunes '{event.tensor}' after step {event.step} by its gradient, "
            "and none was seen; call backward on a loss of the net in training mode before each optimizer step"
        )


def _act_alone(net: CompressedModule, event: Event, units: Mapping[str, Unit], sources: Mapping[str, Any]) -> None:
    if event.action == "quantize":
        module: Any = net.get_submodule(event.path)
        assert isinstance(module, Quantizer)
        module.calibrate(evaluate(net, sources[event.path]) if event.kind == "weight" else None)
        module.observing = False
        return
    unit = units[event.path]
    if event.action == "release":
        for pruner in unit.all_pruners(net):
            pruner.release()
        return
    for path in unit.pruners:
        origin = net.get_submodule(path).get_buffer("origin")
        if event.action == "remember":
            origin.copy_(evaluate(net, sources[path]))
        else:
            # The weight that is read is the parameter's own memory.
            write(evaluate(net, sources[path], split=True), origin)
