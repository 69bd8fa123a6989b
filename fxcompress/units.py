"""Units: what one event prunes as a whole, with a score for every entry and a way to keep some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fxcompress.masks import block_scores, kept, kept_of_each, spread_blocks
from fxcompress.patterns import Blocks, Grouped
from fxcompress.pruner import Pruner
from fxcompress.rules import Prune
from fxcompress.scores import scores


class Unit(Protocol):
    """`pruners` are the paths of what decides, and observes before an event; `rule` says how."""

    @property
    def pruners(self) -> tuple[str, ...]:
        """The pruners whose tensors decide."""

    @property
    def rule(self) -> Prune:
        """The rule that prunes the unit."""

    def scores(self, net: nn.Module, values: Mapping[str, Tensor], draw: str) -> Tensor:
        """The worth of each entry; `values` are the weights by pruner."""

    def entries(self, net: nn.Module) -> int:
        """How many scores there are."""

    def choose(self, scores: Tensor, sparsity: float) -> Tensor:
        """Which entries stay, bool, where the unit reaches the sparsity by itself."""

    def keep(self, net: nn.Module, stays: Tensor) -> None:
        """Mask all other entries."""

    def all_pruners(self, net: nn.Module) -> list[Pruner]:
        """Every pruner that has entries of the unit in its mask."""


@dataclass(frozen=True)
class ElementUnit:
    """One tensor by itself. `axes` are those of a weight's outputs and inputs."""

    path: str
    rule: Prune
    axes: tuple[int, int] = (0, 1)

    @property
    def pruners(self) -> tuple[str, ...]:
        """The tensor's own."""
        return (self.path,)

    def scores(self, net: nn.Module, values: Mapping[str, Tensor], draw: str) -> Tensor:
        """One for each element, or for each block."""
        pruner = self.all_pruners(net)[0]
        seen = pruner.magnitude if pruner.of_activation else values[self.path]
        each = scores(self.rule.criterion, seen, getattr(pruner, "sensitivity", None), draw)
        blocks = Blocks.of(self.rule.pattern)
        return block_scores(each, blocks, self.axes) if blocks else each

    def entries(self, net: nn.Module) -> int:
        """Elements, or blocks."""
        blocks = Blocks.of(self.rule.pattern)
        return self.all_pruners(net)[0].mask.numel() // (blocks.outputs * blocks.inputs if blocks else 1)

    def choose(self, scores: Tensor, sparsity: float) -> Tensor:
        """Exactly so many, or so many of each group."""
        grouped = Grouped.of(self.rule.pattern)
        if grouped:
            return kept_of_each(scores, grouped, self.axes[1])
        return scores != 0 if self.rule.criterion == "zeros" else kept(scores, sparsity)

    def keep(self, net: nn.Module, stays: Tensor) -> None:
        """Write the mask."""
        blocks = Blocks.of(self.rule.pattern)
        self.all_pruners(net)[0].keep(spread_blocks(stays, blocks, self.axes) if blocks else stays)

    def all_pruners(self, net: nn.Module) -> list[Pruner]:
        """The tensor's own."""
        pruner: Any = net.get_submodule(self.path)
        return [pruner]
