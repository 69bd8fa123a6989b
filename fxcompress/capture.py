"""Capture a model: regions that are graphs, and islands between them that run as written."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph

from fxcompress import calls
from fxcompress.errors import CaptureError
from fxcompress.islands import Island, is_leaf
from fxcompress.mirror import mirror
from fxcompress.records import Call, Records, observe
from fxcompress.symbols import Untraceable
from fxcompress.tracer import ForwardTracer
from fxcompress.values import Values


@dataclass(frozen=True)
class Variant:
    """A region's graph for one pattern of arguments (`calls.pattern`) and the `training` flags that Python branched
    on."""

    pattern: tuple[Any, ...]
    flags: Mapping[str, bool]
    graph: Graph

    def fits(self, pattern: tuple[Any, ...], flag: Mapping[str, bool]) -> bool:
        """Whether a call with this pattern, under these flags, may run the graph."""
        return self.pattern == pattern and all(flag[path] == value for path, value in self.flags.items())


@dataclass(frozen=True)
class Captured:
    """A model as graphs over a tree of shallow copies of its modules (same parameters, same buffers, same types).

    `regions` holds the graphs of every module that is captured as a whole, by path: of the root, or where that is an
    island, of those within.
    """

    root: nn.Module
    regions: Mapping[str, list[Variant]]
    islands: Mapping[str, Island]


def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Captured:
    """Capture `model` for calls with the arguments `inputs` (by parameter name).

    Raises CaptureError if the model itself fails on them.
    """
    work = _Capture(mirror(model), inputs)
    modes = work.modes()
    for number, flags in enumerate(modes):
        try:
            work.capture_root(flags)
        except CaptureError:
            if number == 0:  # the other mode may need other inputs, and is captured when it is first called
                raise
    for flags in modes:
        work.capture_inside_islands(flags)
    return Captured(work.root, work.regions, work.islands)


def capture_call(root: nn.Module, path: str, arguments: Mapping[str, Any], islands: Mapping[str, Island]) -> Captured:
    """One more graph of the region at `path`, for a call with `arguments` under the flags as they are now.

    Raises CaptureError if the region cannot be captured for this call.
    """
    work = _Capture(mirror(root), arguments, dict(islands), path)
    try:
        work.trace(path, arguments, work.modes()[0])
    except Exception as error:
        island = Island.of(root.get_submodule(path), error)
        raise CaptureError(
            f"a call of '{path or type(root).__name__}' unlike those before cannot be captured: {island.reason}; "
            "compress with example inputs like those that the net is called with"
        ) from error
    return Captured(work.root, work.regions, work.islands)


class _Capture:
    """Captures one model, or more of one, from a call of its module `called` with `inputs`."""

    def __init__(
        self, root: nn.Module, inputs: Mapping[str, Any], islands: dict[str, Island] | None = None, called: str = ""
    ) -> None:
        self.root, self.inputs, self.called = root, inputs, called
        self.untouched = mirror(root)  # for real runs: while a forward is traced, its modules are not themselves
        self.values = Values(root)
        self.regions: dict[str, list[Variant]] = {}
        self.islands = {} if islands is None else islands
        self.records: dict[tuple[bool, ...], Records | CaptureError] = {}

    def modes(self) -> list[dict[str, bool]]:
        """Every module's flag: as they are, all in training, all in evaluation; each once."""
        now = {f"{path}.training".removeprefix("."): module.training for path, module in self.root.named_modules()}
        found = [now, dict.fromkeys(now, True), dict.fromkeys(now, False)]
        return [m for i, m in enumerate(found) if m not in found[:i]]

    def capture_root(self, flags: Mapping[str, bool]) -> None:
        """Capture the root, or note that it is an island."""
        if "" in self.islands:
            return
        signature = inspect.signature(self.root.forward)
        arguments = calls.arguments(signature, self.inputs)
        try:
            self.trace("", arguments, flags)
        except Exception as error:
            self.observed(flags)
            self.islands[""] = Island.of(self.root, error)
            self.regions.pop("", None)

    def trace(self, path: str, arguments: Mapping[str, Any], flags: Mapping[str, bool]) -> None:
        """Add the graph of one call of the module at `path`, if none of its graphs fits."""
        pattern = calls.pattern(arguments)
        known = self.regions.get(path, [])
        if any(v.fits(pattern, flags) for v in known):
            return
        tracer = ForwardTracer(self.root, self.values, flags, self.islands, lambda p, n: self._yielded(flags, p, n))
        graph = tracer.trace_forward(path, self.values.like(dict(arguments)))
        self.regions.setdefault(path, []).append(Variant(pattern, tracer.branched, graph))

    def capture_inside_islands(self, flags: Mapping[str, bool]) -> None:
        """Capture what islands call, as large as it goes."""
        done: set[str] = set()
        while pending := [path for path in self.islands if path not in done]:
            for path in pending:
                done.add(path)
                hooked = self.islands[path].hooked
                for candidate in [path] if hooked else _children(self.root, path):
                    self._capture_inside(candidate, flags)

    def _capture_inside(self, path: str, flags: Mapping[str, bool]) -> None:
        module = self.root.get_submodule(path)
        if is_leaf(module) or (path in self.islands and not self.islands[path].hooked):
            return
        try:
            found = self.observed(flags).calls.get(path, [])
        except CaptureError:
            return
        if not found:
            for child in _children(self.root, path):
                self._capture_inside(child, flags)
        elif any(True for _ in module.parameters()):
            self._capture_calls(path, module, found, flags)

    def _capture_calls(self, path: str, module: nn.Module, found: list[Call], flags: Mapping[str, bool]) -> None:
        signature = inspect.signature(module.forward)
        try:
            for call in found:
                given = dict(signature.bind(*call.args, **call.kwargs).arguments)
                self.trace(path, calls.arguments(signature, given), flags)
        except Exception as error:
            self.islands[path] = Island.of(module, error)
            self.regions.pop(path, None)

    def observed(self, flags: Mapping[str, bool]) -> Records:
        """The calls of a real run under these flags. Raises CaptureError if the model fails."""
        key = tuple(flags.values())
        if key not in self.records:
            signature = inspect.signature(self.root.get_submodule(self.called).forward)
            try:
                arguments = calls.spread(signature, calls.arguments(signature, self.inputs))
                with self.values.aside():
                    self.records[key] = observe(self.untouched, self.called, arguments, flags, self.values.like)
            except CaptureError as error:
                self.records[key] = error
        found = self.records[key]
        if isinstance(found, CaptureError):
            raise found
        return found

    def _yielded(self, flags: Mapping[str, bool], path: str, number: int) -> Any:
        found = self.observed(flags).calls.get(path, [])
        if len(found) <= number:
            raise Untraceable(f"it calls '{path}' otherwise than the model does")
        return found[number].output


def _children(root: nn.Module, path: str) -> Iterator[str]:
    return (f"{path}.{name}".removeprefix(".") for name, _ in root.get_submodule(path).named_children())
