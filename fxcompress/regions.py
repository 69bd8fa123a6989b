"""Regions inside islands: modules that run graphs of the net that holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Region:
    """The forward of a module inside an island: its graphs, on the net that holds them. `written` is the forward that
    the module had as an attribute of its own, if any."""

    def __init__(self, net: Any, path: str, written: Callable[..., Any] | None) -> None:
        self.net, self.path, self.written = net, path, written

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph that fits."""
        return self.net.call_region(self.path, args, kwargs)


def hand_over(net: Any, path: str) -> None:
    """Let the module at `path` run its graphs on `net`."""
    module = net.get_submodule(path)
    module.__dict__["forward"] = Region(net, path, module.__dict__.get("forward"))
