"""How channels flow through operators that have weights, which read some channels and yield others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.flow import Flow
from fxcompress.graph import module_of, tensor_at
from fxcompress.labels import Channels, Labelled, along_axis, compact, fixed
from fxcompress.operators import (
    CONVOLUTIONS,
    TRANSPOSED,
    argument,
    bias_of,
    channel_axis,
    input_of,
    shape_of,
    weight_of,
)
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.sites import strip


class WeightFlow:
    """Labels of what products and embeddings yield; notes which channels they read."""

    def __init__(self, gm: GraphModule, found: Channels, flow: Flow) -> None:
        self.gm, self.found, self.unions, self.flow = gm, found, found.unions, flow

    def embedding(self, node: Node) -> Any:
        """A table's columns are channels."""
        table = strip(self.gm, argument(node, 1, "weight"))
        if table.op != "get_attr":
            return fixed(shape_of(node))
        labels = self.found.labels(str(table.target), 1, shape_of(table)[1])
        self.found.producers[str(table.target)] = 1
        dead = (self._weight(argument(node, 1, "weight")) == 0).all(0)
        return along_axis(labels, dead, len(shape_of(node)) - 1, shape_of(node))

    def product(self, node: Node) -> Any:
        """Convolutions, linear layers, and matrix products with a stored weight."""
        x, table = self.found.at[input_of(node)], strip(self.gm, weight_of(node))
        axis = self._input_axis(node)
        if table.op != "get_attr" or not isinstance(x, Labelled) or axis is None or channel_axis(node) > 1:
            return self.flow.unknown(self.gm, node, [x, self.found.at[weight_of(node)]])
        name, out_axis, weight = str(table.target), channel_axis(node), self._weight(weight_of(node))
        groups = self._groups(node)
        read, dead_in = self.unions.along(x.labels, axis), _all_along(x.dead, axis)
        whole = self._grouped(name, weight, (read, dead_in), groups, out_axis) if groups > 1 else None
        labels, dead, used = whole or self._single(node, weight, (read, dead_in), out_axis)
        if groups == 1:  # groups yield the channels that they read, so those count that are read from them
            self.found.needed.append(read[used & ~dead_in])
        if not x.vanishes:
            self.found.leaking.append(read)
        self.found.producers[name] = 0 if groups > 1 else out_axis
        dead = dead & self._bias(node, labels)
        out = 1 if node.target in CONVOLUTIONS | TRANSPOSED else len(shape_of(node)) - 1
        return along_axis(labels, dead, out, shape_of(node))

    def _single(
        self, node: Node, weight: Tensor, read: tuple[Tensor, Tensor], out_axis: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Every output reads every input: labels of the outputs, which are dead, and which inputs are used."""
        name, in_axis = str(strip(self.gm, weight_of(node)).target), 1 - out_axis
        inputs = self.found.labels(name, in_axis, weight.shape[in_axis])
        self.unions.tie(inputs, read[0])
        self._tie_blocks(weight_of(node), inputs)
        nonzero = (weight != 0).flatten(2).any(2) if weight.ndim > 2 else weight != 0
        nonzero = nonzero if out_axis == 0 else nonzero.T
        labels = self.found.labels(name, out_axis, weight.shape[out_axis])
        return labels, ~(nonzero & ~read[1]).any(1), nonzero.any(0)

    def _grouped(
        self, name: str, weight: Tensor, read: tuple[Tensor, Tensor], groups: int, out_axis: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Groups go as a whole, all channels that one reads and yields; returns what `_single` does."""
        rows = self.found.labels(name, 0, weight.shape[0]).view(groups, -1)
        self.unions.tie(rows, rows[:, :1])
        self.unions.tie(read[0].view(groups, -1), rows[:, :1])
        per_group = weight.shape[0] // groups if out_axis == 0 else weight.shape[1]
        # A transposed convolution's weight counts what it reads along its first axis; its outputs have no axis there.
        labels = rows.flatten() if out_axis == 0 else rows[:, :1].expand(-1, per_group).reshape(-1)
        nonzero = (weight != 0).view(groups, weight.shape[0] // groups, weight.shape[1], -1).any(-1)
        nonzero = nonzero if out_axis == 0 else nonzero.transpose(1, 2)  # group, output, input
        alive = ~read[1].view(groups, 1, -1)
        return labels, ~(nonzero & alive).any(2).flatten(), nonzero.any(1).flatten()

    def _tie_blocks(self, weight: Node, inputs: Tensor) -> None:
        """Inputs that share a scale go together."""
        module = module_of(self.gm, weight)
        if isinstance(module, Quantizer) and module.plan.block:
            blocks = inputs.view(-1, module.plan.block)
            self.unions.tie(blocks, blocks[:, :1])

    def _bias(self, node: Node, labels: Tensor) -> Tensor:
        """Tie the bias to a product's output; whether it is zero."""
        bias = bias_of(node)
        if bias is None:
            return torch.tensor(True)
        stored, value = strip(self.gm, bias), self.found.at[bias]
        if stored.op != "get_attr" or not isinstance(value, Labelled) or value.labels.ndim != 1:
            self._keep(value)
            self.unions.fix(labels)
            return torch.tensor(False)
        if len(value.labels) != len(labels):  # one for all
            self.unions.fix(value.labels)
            return value.dead
        self.unions.tie(value.labels, labels)
        return value.dead

    def _weight(self, node: Node) -> Tensor:
        """The weight as it is masked now."""
        value = tensor_at(self.gm, str(strip(self.gm, node).target)).detach().cpu()
        while node.op == "call_module":
            module = module_of(self.gm, node)
            value = value * module.mask.cpu() if isinstance(module, Pruner) and module.is_enabled else value
            node = node.args[0]  # type: ignore[assignment]
        return value

    def _input_axis(self, node: Node) -> int | None:
        """The axis that counts the channels a product reads; None for one sample without a batch."""
        axes = len(shape_of(input_of(node)))
        if node.target not in CONVOLUTIONS | TRANSPOSED:
            return axes - 1
        return 1 if axes == len(shape_of(strip(self.gm, weight_of(node)))) else None

    def _groups(self, node: Node) -> int:
        if node.target in TRANSPOSED:
            return int(argument(node, 6, "groups", 1))
        return int(argument(node, 6, "groups", 1)) if node.target in CONVOLUTIONS else 1

    def _keep(self, value: Any) -> None:
        if isinstance(value, Labelled):
            self.unions.fix(value.labels)


def _all_along(dead: Tensor, axis: int) -> Tensor:
    """Whether all elements at each place along `axis` are dead."""
    small = compact(dead).movedim(axis, 0)
    return small.reshape(len(small), -1).all(1).expand(dead.shape[axis])
