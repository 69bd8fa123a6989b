"""A net with the masks that inputs of a size need, to export and verify it at that size."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcompress.graph import modules_of_type
from fxcompress.module import CompressedModule
from fxcompress.pruner import Pruner


def fitted(net: CompressedModule, inputs: Mapping[str, Any]) -> CompressedModule:
    """`net` itself, or where it has masks in the centre a copy in which they are as large as these inputs want them."""
    if not _centred(net):
        return net
    twin = copy.deepcopy(net).eval()
    hooks = [pruner.register_forward_pre_hook(_fit) for pruner in _centred(twin)]
    with torch.no_grad():
        twin(**inputs)
    for hook in hooks:
        hook.remove()
    return twin


def _centred(net: CompressedModule) -> list[Pruner]:
    return [pruner for _, pruner in modules_of_type(net, Pruner) if pruner.fits_centre and pruner.is_enabled]


def _fit(pruner: nn.Module, args: tuple[Any, ...]) -> None:
    assert isinstance(pruner, Pruner)
    pruner.mask = pruner.fitting(args[0])
