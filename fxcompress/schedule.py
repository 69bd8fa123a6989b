"""The schedule: a timeline of events, moved by completed optimizer steps."""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxcompress.acting import act, acted_on, observers
from fxcompress.compiling import changing
from fxcompress.dryrun import observe_only
from fxcompress.errors import ScheduleError
from fxcompress.graph import COMPRESSION
from fxcompress.joined import agree, join, keep_sums_once, meet, share
from fxcompress.module import CompressedModule
from fxcompress.picture import write_picture
from fxcompress.ranks import many
from fxcompress.sharded import refuse_parts, split
from fxcompress.timeline import Event, render_timeline
from fxcompress.timing import Length, plan
from fxcompress.tracks import Track, bars, tracks
from fxcompress.units import Unit

RATES = 500
"""How many learning rates are noted over a training, besides those at events."""


@dataclass(eq=False)
class Schedule:
    """The events of a net and how many optimizer steps were completed.

    Events that come before any training forward look at `example_inputs` instead. `units` is what events that prune act
    on, by `Event.path`; `left_alone` says why weights that a rule selects are left alone. `rates` are learning rates of
    the attached optimizer by completed step: at every event, and some hundreds between. `group` is the process group
    whose ranks train the net together, None for the default group, if there is one. `counter` is `steps` as state.
    """

    net: CompressedModule
    events: tuple[Event, ...]
    length: Length
    example_inputs: Mapping[str, Any] = field(repr=False)
    target: str
    notes: tuple[str, ...] = ()
    units: Mapping[str, Unit] = field(default_factory=dict, repr=False)
    left_alone: Mapping[str, str] = field(default_factory=dict, repr=False)
    steps: int = 0
    rates: dict[int, float] = field(default_factory=dict, repr=False)
    group: Any = field(default=None, repr=False)
    _optimizer: Any = field(default=None, repr=False)
    _has_met: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self._by_step: dict[int, list[Event]] = {}
        for event in self.events:
            self._by_step.setdefault(event.step, []).append(event)
        # Observation starts at these steps; it ends with the event itself.
        self._windows: dict[int, list[Event]] = {}
        previous: dict[str, int] = {}
        for event in self.events:
            if not observers(event, self.units):
                continue
            start = max(event.step - event.window, previous.get(event.path, 0))
            previous[event.path] = event.step
            if start < event.step:
                self._windows.setdefault(start, []).append(event)
        self.counter = torch.tensor(self.steps)

    def start(self) -> None:
        """Let the events of step 0 act and open the first windows; `compress` calls it once."""
        self._act()

    def restart(self) -> None:
        """Begin again: masks and grids are lifted, and all events act anew, counted from here.

        Weights stay as they are, and so do masks that are kept under names. An attached optimizer moves it on.
        """
        for _, module in _compressors(self.net):
            module.release()
            module.reset()
            module.observing = False
        self._has_met = False
        self._stand_at(0)
        self.start()

    def step(self) -> None:
        """Note one completed optimizer step and let its events act.

        Raises ScheduleError where an optimizer is attached, whose steps are counted already.
        """
        if self._optimizer is not None:
            raise ScheduleError(
                "an optimizer is attached and its steps move the schedule; do not call schedule.step() too"
            )
        self._advance()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the completed steps of `optimizer` move the schedule; gradient accumulation and skipped AMP steps do not.

        It gets the learned scales that it does not have yet, as a group without weight decay. Raises ScheduleError if
        another optimizer is attached.
        """
        if self._optimizer is optimizer:
            return
        if self._optimizer is not None:
            raise ScheduleError(
                "another optimizer is attached already, and two would move the schedule twice a step; "
                "attach the one whose steps count"
            )
        refuse_parts(self.net)
        self._optimizer = optimizer
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        learned = [p for _, m in _compressors(self.net) for p in m.parameters() if id(p) not in known]
        if learned:
            # Decay would pull scales towards zero.
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        optimizer.register_step_post_hook(self._after_step)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training, if they were given."""
        return self.length.total_steps

    @property
    def attached(self) -> torch.optim.Optimizer | None:
        """The optimizer whose steps move the schedule, if any."""
        optimizer: torch.optim.Optimizer | None = self._optimizer
        return optimizer

    def restore(self, steps: int) -> None:
        """Continue after `steps` completed steps; the pruners and quantizers hold the rest of the state."""
        self._stand_at(steps)
        keep_sums_once(self.net, self.group)
        open_now = {
            path
            for start, events in self._windows.items()
            for event in events
            if start <= steps < event.step
            for path in observers(event, self.units)
        }
        for path, module in _compressors(self.net):
            module.observing = path in open_now

    def reread(self) -> None:
        """Stand where `counter` says, which a checkpoint may have been read into."""
        if int(self.counter) != self.steps:
            self.restore(int(self.counter))

    def join(self) -> None:
        """Put together what the ranks have observed so far, so that the state of each holds all of it.

        Events do so themselves; call it on all ranks before a checkpoint is saved, so that a resumed run is exact.
        """
        if many(self.group):
            agree(self.net, f"join after step {self.steps}", self.group, observed=True)
            join([m for _, m in _compressors(self.net) if m.observing], self.group)
            keep_sums_once(self.net, self.group)

    def timeline(self) -> str:
        """All events as a table: step, share of the total, what happens to how many tensors; then a bar for each rule
        over the steps."""
        table = render_timeline(self.events, self.steps, self.total_steps, self.notes)
        drawn = bars(self.tracks(), self.total_steps, self.rates) if self.total_steps else []
        return "\n".join([table.rstrip("\n"), *drawn])

    def tracks(self) -> list[Track]:
        """What each rule does over the steps."""
        return tracks(plan(self.net.spec, *self.length))

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline as a picture (.png, .svg or .pdf): bars, sparsity, bits, and learning rates so far.

        Raises ExportError if `path` cannot be written, ScheduleError if the length of training is not known.
        """
        if self.total_steps is None:
            raise ScheduleError("a picture needs the length of training; pass total_steps= to compress")
        write_picture(self.tracks(), self.total_steps, path, self.rates)

    def pending(self) -> list[Event]:
        """Events that have not acted yet."""
        return [event for event in self.events if event.step > self.steps]

    def calibrate(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Let all quantization events act at once, on what evaluation of `batches` (inputs by parameter name) shows.

        Raises ScheduleError where an event that prunes is still to come, or there are no batches.
        """
        pending = self.pending()
        if pruning := [e for e in pending if e.action != "quantize"]:
            raise ScheduleError(
                f"{len(pruning)} events that prune have not acted, the first after step {pruning[0].step} "
                f"({pruning[0].kind} '{pruning[0].tensor}'), and pruning wants training behind it; train past step "
                f"{pruning[-1].step} first, or calibrate with a spec that only quantizes"
            )
        with self._observing({e for e in pending if e.kind == "activation"}):
            if not observe_only(self.net, batches, (False,)):
                raise ScheduleError("there are no batches to calibrate on; pass at least one")
        self._stand_at(max([self.steps, *(e.step for e in pending)]))
        self._let_act(pending)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # A fused optimizer is called on skipped AMP steps too and told by `found_inf`.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._advance()
            self._note_rate(optimizer)

    def _note_rate(self, optimizer: Any) -> None:
        every = max((self.total_steps or 0) // RATES, 1)
        if self.steps in self._by_step or self.steps % every == 0:
            # A rate that is a tensor would wait for the device, so it is read at events only.
            rate = optimizer.param_groups[0]["lr"]
            if isinstance(rate, float | int) or self.steps in self._by_step:
                self.rates[self.steps] = float(rate)

    def _advance(self) -> None:
        self._stand_at(self.steps + 1)
        if not self._has_met and many(self.group):
            events = "; ".join(f"{e.path} {e.action} {e.step} {e.value}" for e in self.events)
            meet(self.net, f"step {self.steps} of {zlib.crc32(events.encode()):x}", self.group)
            self._has_met = True
        self._act()

    def _stand_at(self, steps: int) -> None:
        self.steps = steps
        self.counter.fill_(steps)

    def _act(self) -> None:
        due, opening = self._by_step.get(self.steps, ()), self._windows.get(self.steps, ())
        if due or opening:
            with changing(self.net):
                self._let_act(due)
                for path in (p for event in opening for p in observers(event, self.units)):
                    module: Any = self.net.get_submodule(path)
                    module.reset()
                    module.observing = True

    def _let_act(self, due: Iterable[Event]) -> None:
        due = list(due)
        if not due:
            return
        split(self.net)  # a forward without backward left whole weights behind, older than this step
        watching = {p: self.net.get_submodule(p) for event in due for p in observers(event, self.units)}
        # compress acts before the ranks have met; what it does is taken from the first of them then.
        together = many(self.group) and self.steps > 0
        if together:
            agree(self.net, f"step {self.steps}: {due[0].action} {due[0].path}", self.group, bool(watching))
            join(watching.values(), self.group)
        unseen = [e for e in due if e.kind == "activation" and e.path in watching and not watching[e.path].has_observed]
        if unseen:
            self._calibrate_on_examples(unseen)
            if together:
                join([watching[e.path] for e in unseen], self.group)
        act(self.net, self.units, due)
        if together:
            share(acted_on(self.net, self.units, due), self.group)

    def _calibrate_on_examples(self, events: Iterable[Event]) -> None:
        branches = self.net.islands or any(v.flags for v in self.net.variants)
        with self._observing(events):
            observe_only(
                self.net, [self.example_inputs], (self.net.training, not self.net.training) if branches else (False,)
            )

    @contextmanager
    def _observing(self, events: Iterable[Event]) -> Iterator[None]:
        """While this lasts, what these events act on observes, and nothing else."""
        modules = {self.net.get_submodule(e.path) for e in events}
        observing = {m: m.observing for _, m in _compressors(self.net)}
        for module in observing:
            if module in modules:
                module.reset()
            module.observing = module in modules
        try:
            yield
        finally:
            for module, was in observing.items():
                module.observing = was

    def __deepcopy__(self, memo: dict[int, Any]) -> Schedule:
        # A copy is not attached: the optimizer's hook moves the schedule it was given.
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.net, twin._optimizer = copy.deepcopy(self.net, memo), None
        twin.counter = self.counter.clone()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_optimizer": None, "group": None}


def _compressors(net: nn.Module) -> Iterable[tuple[str, Any]]:
    return ((p, m) for p, m in net.named_modules() if p.startswith(f"{COMPRESSION}.") and hasattr(m, "observing"))
