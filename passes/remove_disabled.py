"""Remove what is disabled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import bypass, drop_dead_code, module_of
from fxcompress.operators import is_dropout
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.symbols import ASSUMPTIONS


@dataclass(frozen=True)
class RemoveDisabled:
    """Remove pruners and quantizers that never started, and what does nothing in evaluation: dropout, checks, dead
    code.

    Before:  %relu = relu:ReLU(%fc1)
             %relu_pruner = compression.relu_pruner:Pruner(%relu)
             %drop = drop:Dropout(%relu_pruner)
             %fc2 = linear(%drop, %fc2_weight, %fc2_bias)
    After:   %relu = relu:ReLU(%fc1)
             %fc2 = linear(%relu, %fc2_weight, %fc2_bias)

    Ensures:  every pruner and quantizer left is enabled.
    Leaves alone: enabled ones.
    """

    name: ClassVar[str] = "remove-disabled"

    def requires(self, gm: GraphModule) -> None:
        """Nothing."""

    def rewrite(self, gm: GraphModule) -> bool:
        """Bypass the nodes, then drop dead code."""
        idle = [n for n in gm.graph.nodes if _is_disabled(gm, n) or is_dropout(gm, n)]
        checks = [n for n in gm.graph.nodes if n.target in (*ASSUMPTIONS, torch._C._set_grad_enabled)]
        for node in idle:
            bypass(gm, node)
        for node in checks:
            gm.graph.erase_node(node)
        return drop_dead_code(gm) or bool(idle or checks)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if a disabled pruner or quantizer is left."""
        for node in gm.graph.nodes:
            if _is_disabled(gm, node):
                raise PassError(f"'{node.target}' never started and is still there")


def _is_disabled(gm: GraphModule, node: Node) -> bool:
    module = module_of(gm, node)
    return isinstance(module, (Pruner, Quantizer)) and not module.is_enabled
