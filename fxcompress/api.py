"""`compress`: one call from a model and a spec to a net that trains as before."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxcompress.assign import Assignment, assign
from fxcompress.calls import bind
from fxcompress.capture import capture
from fxcompress.channel_rules import channel_rules
from fxcompress.errors import ScheduleError, SpecError
from fxcompress.graph import COMPRESSION, has_module, modules_of_type
from fxcompress.groups import Masked
from fxcompress.islands import unexportable
from fxcompress.masks import may_go, zeros_in
from fxcompress.module import CompressedModule
from fxcompress.passes import (
    Canonicalize,
    PruneActivations,
    PruneChannels,
    PruneWeights,
    QuantizeActivations,
    QuantizeGates,
    QuantizeWeights,
    ShareScales,
)
from fxcompress.passes.share_scales import find_leaders
from fxcompress.pipeline import Hook, Pass, run
from fxcompress.quantizer import Quantizer
from fxcompress.rules import Prune, Quantize
from fxcompress.schedule import Schedule
from fxcompress.shortcuts import sites_for
from fxcompress.sites import Kind, Site, find_sites
from fxcompress.spec import Spec
from fxcompress.suitable import refuse_inputs, refuse_unsuitable
from fxcompress.targets import TARGETS, Target, check_target, notes_on
from fxcompress.timeline import Event
from fxcompress.timing import Length, Phase, plan
from fxcompress.units import ElementUnit, Unit


def compress(  # noqa: PLR0913 - the public surface
    model: nn.Module,
    spec: Any,
    example_inputs: Any,
    *,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    target: str = "onnxruntime",
) -> CompressedModule:
    """Rewrite `model` into a net with pruners and quantizers that act on the schedule of `spec`.

    Args:
        model: any module; its parameters and buffers become the net's own, under the same names.
        spec: the notation (`"P0.5(w,f) -> Q8(w,f)"`), a path to a YAML, TOML or JSON file, a dict or a `Spec`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs that the model is called with.
        total_steps: optimizer steps of the whole training; needed where times are percentages or left out.
        steps_per_epoch: optimizer steps of an epoch; needed where times are in epochs (`@115ep`).
        optimizer: if given, its completed steps move the schedule; else call `net.schedule.step()` after each. Learned
            scales need one, and become a group of it without weight decay.
        target: the runtime that the net is meant for: "onnxruntime" (with 8-bit dot products, such as AVX512-VNNI),
            "onnxruntime-avx2", "openvino", "tensorrt" or "generic", which takes all that ONNX can say.

    Raises SpecError, CaptureError or ScheduleError before anything is rewritten; `model` itself stays as it was.
    """
    rules = Spec.of(spec)
    check_target(rules, target)
    length = Length(total_steps, steps_per_epoch)
    plan(rules, *length)
    refuse_unsuitable(model, rules)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ScheduleError(f"optimizer is {optimizer!r}; pass a torch.optim.Optimizer, or leave it out")
    if optimizer is None and any(isinstance(rule, Quantize) and rule.scale == "learned" for rule in rules.rules):
        raise ScheduleError(
            "the spec has learned scales and there is no optimizer to train them; make one of the model's parameters "
            "and pass optimizer=, which adds the scales to it as a group without weight decay"
        )
    inputs = bind(model, example_inputs)
    refuse_inputs(inputs)
    net = compressed(model, rules, inputs, length, target)
    net.schedule.start()
    if optimizer is not None:
        net.schedule.attach(optimizer)
    return net


def compressed(
    model: nn.Module, spec: Spec, inputs: Mapping[str, Any], length: Length, target: str
) -> CompressedModule:
    """`model` rewritten, with a schedule that has not begun; `inputs` by parameter name."""
    with _without_collector():
        return _compressed(model, spec, inputs, length, target)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector would walk over all of a growing graph again and again; nothing here is garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _compressed(
    model: nn.Module, spec: Spec, inputs: Mapping[str, Any], length: Length, target: str
) -> CompressedModule:
    phases = plan(spec, *length)
    net = captured_net(model, inputs)
    sites = sites_for(TARGETS[target], net.views())
    assignment = assign(spec, list(sites.values()))
    channels = channel_rules(net, assignment)
    leaders = insert_compression(net, assignment, channels.masked, target=target)
    net.rewrite_more = _RewriteMore(assignment, channels.masked, leaders, target)
    net.spec = spec
    events = [event for phase in phases for event in (*_events(net, assignment, phase, sites), *channels.events(phase))]
    events.sort(key=lambda event: event.step)
    acting: dict[str, Unit] = {**channels.units, **dict(_units(assignment, sites))}
    _refuse_floors(net, spec, acting.values())
    notes = (*_island_notes(net), *notes_on(spec, TARGETS[target]), *_notes(assignment, sites))
    net.schedule = Schedule(net, tuple(events), length, inputs, target, notes, acting, channels.left_alone)
    return net


def captured_net(model: nn.Module, inputs: Mapping[str, Any], after: Hook | None = None) -> CompressedModule:
    """The model as a canonical net with shapes noted and nothing inserted."""
    net = CompressedModule(capture(model, inputs), type(model).__name__)
    for gm in net.each_variant():
        run(gm, [Canonicalize()], after)
    return net


def insert_compression(
    net: CompressedModule,
    assignment: Assignment,
    channels: Masked,
    after: Hook | None = None,
    target: str = "onnxruntime",
) -> Mapping[str, str]:
    """Run the passes that insert pruners and quantizers on all graphs of `net`; then concatenations share scales.

    Returns which quantizer serves which.
    """
    for gm in net.each_variant():
        run(gm, compression_passes(gm, assignment, channels, TARGETS[target]), after)
    leaders = find_leaders(net.views())
    for gm in net.each_variant():
        run(gm, [ShareScales(leaders)], after)
    _drop_uncalled(net)
    net.recompile()
    return leaders


@dataclass(frozen=True)
class _RewriteMore:
    """Rewrites a graph that is captured later, with the pruners and quantizers that are there."""

    assignment: Assignment
    channels: Masked
    leaders: Mapping[str, str]
    target: str

    def __call__(self, net: CompressedModule, gm: GraphModule) -> None:
        passes = compression_passes(gm, self.assignment, self.channels, TARGETS[self.target])
        run(gm, [Canonicalize(), *passes, ShareScales(self.leaders)])
        _drop_uncalled(net)


def compression_passes(gm: GraphModule, assignment: Assignment, channels: Masked, target: Target) -> list[Pass]:
    """The passes that insert what the rules assign, pruners first, `q(p(x))`, but where a rule says `p(q(x))`."""
    sites = find_sites(gm)
    weights = [s.name for s in sites if s.kind == "weight"]
    activations = [s.name for s in sites if s.kind == "activation"]
    of_weights, of_activations = assignment.prunes("weight", weights), assignment.prunes("activation", activations)
    passes: list[Any] = [
        *([PruneChannels(channels)] if channels.parameters else []),
        PruneWeights(_composed(of_weights, "q(p(x))")),
        PruneActivations(_composed(of_activations, "q(p(x))")),
        QuantizeWeights(assignment.quantizes("weight", weights), target),
        QuantizeActivations(assignment.quantizes("activation", activations), target),
        *([QuantizeGates()] if target.integer_gates else []),
    ]
    behind = _composed(of_weights, "p(q(x))"), _composed(of_activations, "p(q(x))")
    return [*passes, *([PruneWeights(behind[0]), PruneActivations(behind[1])] if any(behind) else [])]


def _composed(rules: Mapping[str, Prune], composition: str) -> dict[str, Prune]:
    return {name: rule for name, rule in rules.items() if rule.composition == composition}


def _drop_uncalled(net: CompressedModule) -> None:
    """Delete quantizers that no graph calls any more since another one serves in their place."""
    called = {str(n.target) for graph in net.graphs for n in graph.nodes if n.op == "call_module"}
    for path, _ in [*modules_of_type(net, Quantizer)]:
        if path not in called:
            owner, _, name = path.rpartition(".")
            del net.get_submodule(owner)._modules[name]


def _events(net: CompressedModule, assignment: Assignment, phase: Phase, sites: Mapping[str, Site]) -> Iterator[Event]:
    rule, kind = phase.rule, phase.target
    if isinstance(rule, Prune) and rule.by_channel and kind == "weight":
        return  # its events act on groups of channels
    names = [name for name, index in assignment.rules[rule.op, kind].items() if index == phase.rule_index]
    suffix = "pruner" if isinstance(rule, Prune) else "quantizer"
    for place, name in enumerate(names):
        path = f"{COMPRESSION}.{name}_{suffix}"
        for act in phase.acts_of(place, len(names)):
            if isinstance(rule, Quantize):
                act = replace(act, value=rule.bits_for(sites[name].is_edge))
            if has_module(net, path):  # a quantizer that shares another's scale is gone
                yield Event.of(act, phase, name, path)


def _units(assignment: Assignment, sites: Mapping[str, Site]) -> Iterator[tuple[str, ElementUnit]]:
    """What events that prune single tensors act on."""
    kinds: tuple[Kind, Kind] = ("weight", "activation")
    for kind in kinds:
        for name, rule in assignment.prunes(kind, sites).items():
            out = sites[name].axis or 0
            yield f"{COMPRESSION}.{name}_pruner", ElementUnit(f"{COMPRESSION}.{name}_pruner", rule, (out, 1 - out))


def _refuse_floors(net: CompressedModule, spec: Spec, units: Iterable[Unit]) -> None:
    """Refuse a global scope that would take more than its floor leaves."""
    sizes: dict[Prune, list[int]] = {}
    for unit in (u for u in units if u.rule.scope == "global" and u.rule.share != 1):
        sizes.setdefault(unit.rule, []).append(unit.entries(net))
    for rule, entries in sizes.items():
        wanted, most = zeros_in(rule.share, sum(entries)), may_go(entries, rule.floor)
        if wanted > most:
            raise SpecError(
                f"rule {spec.rules.index(rule) + 1} '{rule}' would prune {wanted} of {sum(entries)} entries, and its "
                f"floor of {rule.floor} of every tensor, one at least, leaves {most} that may go; lower 'sparsity' or "
                "'floor'"
            )


def _island_notes(net: CompressedModule) -> list[str]:
    """What a person who wants to export must hear before training; logged, and part of the timeline."""
    found = unexportable(net.islands)
    if not found:
        return []
    note = f"cannot be exported, since parts of the model run as written: {', '.join(found)}"
    logging.getLogger("fxcompress").warning("the model trains and compresses, but %s", note)
    return [note]


def _notes(assignment: Assignment, sites: Mapping[str, Site]) -> tuple[str, ...]:
    raised: dict[int, list[str]] = {}
    for (_, _), rules in assignment.rules.items():
        for name, index in rules.items():
            rule = assignment.spec.rules[index]
            if isinstance(rule, Quantize) and sites[name].is_edge and rule.bits_for(True) != rule.bits:
                raised.setdefault(rule.bits_for(True), []).append(name)
    return tuple(
        f"first and last layers keep {bits} bits (set first_last_bits to change it): {', '.join(names)}"
        for bits, names in raised.items()
    )
