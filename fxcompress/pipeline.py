"""Run passes, each checked by the runner: requires, rewrite, lint, ensures on the result, "changed" against the
text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch.fx import GraphModule

from fxcompress.errors import FxCompressError, PassError
from fxcompress.render import render


class Pass(Protocol):
    """A rewrite of a graph, as a small frozen value."""

    @property
    def name(self) -> str:
        """The pass's name in messages and in `tools/show`."""

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError if the graph is not what the pass needs."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Rewrite the graph in place; True if anything changed."""

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if the result is not what the pass promises."""


Hook = Callable[[Pass, GraphModule], None]


def run(gm: GraphModule, passes: Iterable[Pass], after: Hook | None = None) -> bool:
    """Run `passes` on `gm` in order, check each, and recompile; True if any changed the graph.

    `after(pass, gm)` is called once each pass has stood its checks. Raises PassError, which names the pass, the passes
    already done, the reason, and shows the graph.
    """
    done: list[str] = []
    changed = False
    before = render(gm)
    for rewrite in passes:
        try:
            claimed = _checked(gm, rewrite)
        except Exception as error:
            reason = str(error) if isinstance(error, FxCompressError) else f"{type(error).__name__}: {error}"
            raise PassError(f"pass '{rewrite.name}' failed after {done}: {reason}\n{render(gm)}") from error
        text = render(gm)
        if claimed != (text != before):
            raise PassError(
                f"pass '{rewrite.name}' failed after {done}: it says changed={claimed}, the graph says otherwise"
            )
        before, changed = text, changed or claimed
        done.append(rewrite.name)
        if after:
            after(rewrite, gm)
    gm.recompile()
    return changed


def _checked(gm: GraphModule, rewrite: Pass) -> bool:
    rewrite.requires(gm)
    claimed = rewrite.rewrite(gm)
    gm.graph.lint()
    rewrite.ensures(gm)
    return claimed
