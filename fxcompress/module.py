"""The captured net: a GraphModule that keeps the model's modules, parameters, buffers and modes as they are."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from fxcompress import calls
from fxcompress.capture import Captured, Variant, capture_call
from fxcompress.errors import CaptureError, InputError
from fxcompress.fusing import fused
from fxcompress.graph import COMPRESSION
from fxcompress.islands import Island
from fxcompress.mirror import HOOKS
from fxcompress.pickling import from_records, to_records
from fxcompress.ranks import MARK
from fxcompress.regions import hand_over
from fxcompress.sharded import gather, is_sharded
from fxcompress.symbols import Untraceable
from fxcompress.tied import copy_tied
from fxcompress.view import Flags, View

_UNSTORED = ("_graph", "_regions", "_forwards")
"""What a copy makes anew."""


class CompressedModule(GraphModule):
    """A captured model, rewritten by passes and trained as before.

    Every *region* (the whole model, or a module inside an island) has a graph for each pattern of arguments and mode
    that Python branched on, over the same modules, parameters, pruners and quantizers; a call takes the one that fits,
    and one that none fits is captured then. `graph` is the root's for the current mode.
    """

    schedule: Any
    spec: Any
    rewrite_more: Any
    removals: list[dict[str, list[int]]]
    _islands: dict[str, Island]
    _regions: dict[str, list[Variant]]
    _forwards: dict[int, Callable[..., Any]]
    _written: nn.Module

    def __init__(self, captured: Captured, class_name: str) -> None:
        super().__init__(nn.Module(), Graph(), class_name)
        root = captured.root
        _refuse_shadowing(root)
        for slot in ("_parameters", "_buffers", "_modules"):
            self.__dict__[slot].update(root.__dict__[slot])
            root.__dict__[slot] = self.__dict__[slot]
        for slot in HOOKS:
            self.__dict__[slot], root.__dict__[slot] = root.__dict__[slot], type(root.__dict__[slot])()
        self.__dict__["_is_full_backward_hook"] = root.__dict__.get("_is_full_backward_hook")
        self._non_persistent_buffers_set |= root._non_persistent_buffers_set
        self.__dict__.update({k: v for k, v in root.__dict__.items() if k not in self.__dict__ and k != "forward"})
        self.training = root.training
        self.__dict__["_written"] = root
        self.rewrite_more = None
        self.removals = []
        self.register_state_dict_post_hook(copy_tied)  # type: ignore[no-untyped-call]
        self._islands = dict(captured.islands)
        self._regions = {path: list(variants) for path, variants in captured.regions.items()}
        for path in self._regions:
            if path:
                hand_over(self, path)
        self.__dict__["_forwards"] = {}
        type(self).forward = self._dispatching()

    @property
    def islands(self) -> Mapping[str, Island]:
        """Modules that run as written, by path, and why."""
        return self._islands

    @property
    def regions(self) -> tuple[str, ...]:
        """The paths of the modules that are captured: the root's, or those inside islands."""
        return tuple(self._regions)

    @property
    def graph(self) -> Graph:
        """The root's graph in the current mode; an empty one if the root is an island."""
        variants = self._regions.get("", [])
        flags = Flags(self)
        fitting = [v for v in variants if v.fits(v.pattern, flags)]
        return (fitting or variants)[0].graph if variants else Graph()

    @graph.setter
    def graph(self, graph: Graph) -> None:
        self.__dict__.setdefault("_regions", {})[""] = [Variant((), {}, graph)]
        self.recompile()

    @property
    def variants(self) -> list[Variant]:
        """The graphs of all regions, with what each is for."""
        return [variant for variants in self._regions.values() for variant in variants]

    @property
    def evaluation_variants(self) -> dict[str, list[Variant]]:
        """By region, the graphs that run when all modules are in evaluation mode."""
        off: dict[str, bool] = defaultdict(bool)
        fitting = {path: [v for v in vs if v.fits(v.pattern, off)] for path, vs in self._regions.items()}
        return {path: variants for path, variants in fitting.items() if variants}

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs of all regions, patterns and modes."""
        return tuple(variant.graph for variant in self.variants)

    def view(self, graph: Graph) -> GraphModule:
        """One of the graphs as a GraphModule on the same modules, to read."""
        return View(self, graph)

    def views(self) -> Iterator[GraphModule]:
        """A view of each graph, in turn."""
        return map(self.view, self.graphs)

    def each_variant(self) -> Iterator[GraphModule]:
        """The views for passes to rewrite; the forwards made from the graphs before are forgotten."""
        yield from self.views()
        self._forwards.clear()

    def keep(self, regions: Mapping[str, list[Variant]]) -> None:
        """Drop all graphs but these."""
        self._regions = {path: list(variants) for path, variants in regions.items()}
        self.recompile()

    def recompile(self) -> Any:
        """Make the forwards from the graphs as they are now."""
        code = None
        self.__dict__["_forwards"] = {}
        for variant in self.variants:
            code = self._compile(variant)
        type(self).forward = self._dispatching()
        return code

    def call_region(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the graph of a region that fits this call, captured now if there is none yet.

        Raises TypeError if the arguments do not fit the signature, InputError if no graph can be made for them.
        """
        signature = self._signature(path)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        try:
            pattern = calls.pattern(values)
        except Untraceable as error:
            name = path or type(self).__name__
            raise InputError(f"cannot call '{name}': {error}; pass tensors in containers") from None
        flags = Flags(self)
        for variant in self._regions.get(path, ()):
            if variant.fits(pattern, flags):
                return self._forward_of(variant)(self, *values.values())
        return self._forward_of(self._capture_more(path, values))(self, *values.values())

    def _forward_of(self, variant: Variant) -> Callable[..., Any]:
        if id(variant) not in self._forwards:
            dispatching = type(self).forward
            self._compile(variant)
            type(self).forward = dispatching
        return self._forwards[id(variant)]

    def _dispatching(self) -> Callable[..., Any]:
        """A forward with the model's own signature."""

        def forward(self: CompressedModule, *args: Any, **kwargs: Any) -> Any:
            if is_sharded(self):
                gather(self)
            if "" not in self._islands:
                return self.call_region("", args, kwargs)
            self._written.training = self.training
            return type(self._written).forward(self._written, *args, **kwargs)

        if "_written" in self.__dict__:
            signature = self._signature("")
            others = list(signature.parameters.values())
            positional_only = others and others[0].kind is inspect.Parameter.POSITIONAL_ONLY
            own = inspect.Parameter(
                "self", others[0].kind if positional_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
            )
            forward.__signature__ = signature.replace(parameters=[own, *others])  # type: ignore[attr-defined]
        return forward

    def _signature(self, path: str) -> inspect.Signature:
        if not hasattr(self, "_signatures"):
            self.__dict__["_signatures"] = {}
        signatures = self.__dict__["_signatures"]
        if path not in signatures:
            module = self.get_submodule(path) if path else self._written
            forward = module.__dict__.get("forward")
            written = getattr(forward, "written", forward) or type(module).forward.__get__(module)
            signatures[path] = inspect.signature(written)
        return signatures[path]  # type: ignore[no-any-return]

    def _capture_more(self, path: str, values: Mapping[str, Any]) -> Variant:
        self._written.training = self.training
        captured = capture_call(self._written, path, values, self._islands)
        [variant] = captured.regions[path]
        for name, tensor in captured.root.named_buffers(recurse=False):
            if name not in self._buffers and name != "training":
                self.register_buffer(name, tensor, persistent=False)
        if self.rewrite_more is not None:
            self.rewrite_more(self, View(self, variant.graph))
        self._regions.setdefault(path, []).append(variant)
        return variant

    def _compile(self, variant: Variant) -> Any:
        variant.graph.owning_module = self
        self.__dict__["_graph"] = fused(variant.graph, self)
        code = super().recompile()
        self.__dict__["_graph"] = variant.graph
        self._forwards[id(variant)] = type(self).forward
        return code

    def train(self, mode: bool = True) -> CompressedModule:
        """Switch the mode, and move the schedule to the step that was written into the state from outside, if any."""
        if hasattr(self, "schedule"):
            self.schedule.reread()
        return super().train(mode)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DistributedDataParallel, which asks for this name, must not write the first rank's values over: what a
        rank has observed is its own until an event."""
        return [*(n for n, _ in self.named_buffers() if n.startswith(f"{COMPRESSION}.")), f"{COMPRESSION}.{MARK}"]

    def _replicate_for_data_parallel(self) -> Any:
        raise InputError("DataParallel cannot run a compressed net; train with DistributedDataParallel instead")

    def get_extra_state(self) -> torch.Tensor:
        """The schedule's step, so that a plain `state_dict` resumes it."""
        return self.schedule.counter if hasattr(self, "schedule") else torch.tensor(0)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Move the schedule to the step that was saved."""
        if hasattr(self, "schedule"):
            self.schedule.restore(int(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedModule:
        net = type(self).__new__(type(self))
        memo[id(self)] = net
        memo |= {id(t): t.detach().clone() for t in _leftovers(self)}
        state = {k: v for k, v in self.__dict__.items() if k not in _UNSTORED}
        net.__dict__.update(copy.deepcopy(state, memo))
        net.__dict__["_regions"] = {
            path: [Variant(v.pattern, v.flags, copy.deepcopy(v.graph)) for v in variants]
            for path, variants in self._regions.items()
        }
        type(net).__name__ = type(self).__name__
        net.recompile()
        return net

    def __reduce__(self) -> tuple[Any, ...]:
        state = {k: v for k, v in self.__dict__.items() if k not in (*_UNSTORED, "_signatures")}
        regions = {
            path: [(v.pattern, v.flags, to_records(v.graph)) for v in variants]
            for path, variants in self._regions.items()
        }
        return (_new, (type(self).__name__,), (state, regions))

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.__dict__.update(state[0])
        self.__dict__["_regions"] = {
            path: [Variant(pattern, flags, from_records(records)) for pattern, flags, records in variants]
            for path, variants in state[1].items()
        }
        self.recompile()


def _refuse_shadowing(root: nn.Module) -> None:
    own = {*dir(CompressedModule), "graph", "schedule", "spec", "meta", "compression", *_UNSTORED, "_written"}
    own -= set(dir(nn.Module))
    for name in (*root._modules, *root._parameters, *root._buffers):
        if name in own:
            raise CaptureError(f"the model has an attribute '{name}', which a compressed net uses itself; rename it")


def _leftovers(net: CompressedModule) -> Iterator[torch.Tensor]:
    """Tensors of the last forward that islands keep in attributes; with their history they cannot be copied."""
    for module in (*net.modules(), *net._written.modules()):
        values = [v for k, v in module.__dict__.items() if not k.startswith("_")]
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, torch.Tensor) and not leaf.is_leaf:
                yield leaf


def _new(name: str) -> CompressedModule:
    net: CompressedModule = CompressedModule.__new__(CompressedModule)
    type(net).__name__ = name
    return net
