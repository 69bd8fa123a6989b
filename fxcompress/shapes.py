"""Shapes and dtypes of every tensor in a graph, found by a dry run that computes no values and touches no state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError


def propagate_shapes(gm: GraphModule, inputs: Mapping[str, Any]) -> None:
    """Store `tensor_meta` on every node that yields a tensor, for calls with the arguments `inputs` by name.

    Raises CaptureError if the inputs do not fit the model.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = {name: mode.from_tensor(t) for name, t in (*gm.named_parameters(), *gm.named_buffers())}
    values = pytree.tree_map_only(torch.Tensor, mode.from_tensor, dict(inputs))
    with mode, _evaluating(gm), torch.no_grad():
        _ShapeRun(gm, fakes).run_with(values)


class _ShapeRun(Interpreter):
    """Runs a graph on fake tensors; modules see fake parameters and buffers, so that none is written."""

    def __init__(self, gm: GraphModule, fakes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.fakes = fakes

    def run_with(self, inputs: Mapping[str, Any]) -> None:
        """Run with arguments by name; the others take their defaults."""
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        default = {n: n.args[0] if n.args else None for n in placeholders}
        self.run(*(inputs.get(str(n.target).lstrip("*"), default[n]) for n in placeholders))

    def run_node(self, n: Node) -> Any:
        """Run one node and note what it yields."""
        try:
            result = super().run_node(n)
        except Exception as error:
            site = n.meta.get("site", n.name)
            raise CaptureError(
                f"the example inputs do not fit the model: {type(error).__name__} at '{site}': {error}; "
                "pass inputs of the shape and dtype that the model is called with"
            ) from error
        if isinstance(result, torch.Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(result)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module on its fake parameters and buffers."""
        module = self.fetch_attr(target)
        names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
        state = {name: self.fakes[f"{target}.{name}"] for name in names}
        return torch.func.functional_call(module, state, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A fake parameter or buffer."""
        return self.fakes[target] if target in self.fakes else super().get_attr(target, args, kwargs)


@contextmanager
def _evaluating(gm: nn.Module) -> Iterator[None]:
    # Shapes do not depend on the mode, but batch norm refuses to train on one value a channel.
    modes = {module: module.training for module in gm.modules()}
    gm.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
