"""What is read of a net: its training flags, and each of its graphs as a GraphModule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule


class Flags(Mapping[str, bool]):
    """The `training` flags of a net's modules by path, as they are."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __getitem__(self, path: str) -> bool:
        module: Any = self.net
        *owner, name = path.split(".")
        for part in owner:
            module = module._modules[part]
        return bool(getattr(module, name))

    def __iter__(self) -> Iterator[str]:
        return (f"{path}.training".removeprefix(".") for path, _ in self.net.named_modules())

    def __len__(self) -> int:
        return sum(1 for _ in self.net.modules())


class View(GraphModule):
    """One graph of a net as a GraphModule of its own, on the net's modules; never run by users."""

    def __init__(self, net: nn.Module, graph: Graph) -> None:
        nn.Module.__init__(self)
        for slot in ("_parameters", "_buffers", "_modules"):
            self.__dict__[slot] = net.__dict__[slot]
        self.meta = {}
        self.__dict__["_graph"] = graph
        self.__dict__.update({k: v for k, v in net.__dict__.items() if k not in self.__dict__})
        self.training = net.training
        graph.owning_module = self

    def recompile(self) -> Any:
        """Nothing: the net compiles its graphs once, after all passes."""
