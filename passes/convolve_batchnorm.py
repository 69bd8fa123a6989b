"""Convolve batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import PassError
from fxcompress.graph import insert_constants, insert_function_before, replace, site
from fxcompress.operators import is_batch_norm, is_fusible_activation, shape_of
from fxcompress.placement import grid_of
from fxcompress.qdq import DEQUANTIZE, QUANTIZE_DEQUANTIZE

LARGEST = 127


@dataclass(frozen=True)
class ConvolveBatchNorm:
    """Compute batch norms between two grids, with no product in front of them, as depthwise convolutions of one pixel.

    Runtimes have integer kernels for those, and a float operator would cost them two conversions and often two
    transpositions. With sigma = sqrt(variance + eps) a channel's one weight is the integer 127 with the sign of gamma at
    the scale float32(|gamma| / (127 sigma)), so only its bias is rounded, later.

    Before:  %bn = bn:BatchNorm2d(%x_quantizer)
             %relu = relu:ReLU(%bn)
    After:   %bn_weight = dequantize(%bn_weight_integers, %bn_weight_scale, %bn_weight_zero_point, 0)
             %bn = conv2d(%x_quantizer, %bn_weight, %bn_shift, (1, 1), (0, 0), (1, 1), 3)
             %relu = relu:ReLU(%bn)

    Requires: evaluation mode; activations are frozen.
    Ensures:  no such batch norm is left.
    Leaves alone: batch norms on batch statistics, on other than four axes, or with a float input or output.
    """

    name: ClassVar[str] = "convolve-batchnorm"

    def requires(self, gm: GraphModule) -> None:
        """Raise PassError in training mode."""
        if gm.training:
            raise PassError("the net is in training mode; batch norm has constant statistics in evaluation mode only")

    def rewrite(self, gm: GraphModule) -> bool:
        """Replace each."""
        todo = [n for n in gm.graph.nodes if _is_between_grids(gm, n)]
        for norm in todo:
            _convolve(gm, norm)
        return bool(todo)

    def ensures(self, gm: GraphModule) -> None:
        """Raise PassError if one is left."""
        for node in gm.graph.nodes:
            if _is_between_grids(gm, node):
                raise PassError(f"batch norm '{site(node)}' stands between two grids and is computed in float")


def _is_between_grids(gm: GraphModule, norm: Node) -> bool:
    if not is_batch_norm(gm, norm) or len(shape_of(norm)) != 4:
        return False
    end = norm
    while len(end.users) == 1 and is_fusible_activation(gm, next(iter(end.users))):
        end = next(iter(end.users))
    ends_on_grid = bool(end.users) and all(user.target is QUANTIZE_DEQUANTIZE for user in end.users)
    has_statistics = gm.get_submodule(str(norm.target)).running_var is not None
    return ends_on_grid and has_statistics and grid_of(gm, norm.args[0]) is not None


def _convolve(gm: GraphModule, norm: Node) -> None:
    module: Any = gm.get_submodule(str(norm.target))
    sigma = torch.sqrt(module.running_var.double() + module.eps)
    gamma = torch.ones_like(sigma) if module.weight is None else module.weight.detach().double()
    beta = 0.0 if module.bias is None else module.bias.detach().double()
    scale = _scale(gamma.abs() / (LARGEST * sigma))
    constants = {
        "weight_integers": (LARGEST * torch.sign(gamma)).to(torch.int8).view(-1, 1, 1, 1),
        "weight_scale": scale,
        "weight_zero_point": torch.zeros_like(scale).to(torch.int8),
        "shift": (beta - module.running_mean.double() * gamma / sigma).float(),
    }
    *stored, shift = insert_constants(gm, norm, site(norm), constants)
    weight = insert_function_before(gm, norm, DEQUANTIZE, (*stored, 0), f"{norm.name}_weight")
    weight.meta.update(stored[0].meta)
    replace(norm, F.conv2d, (norm.args[0], weight, shift, (1, 1), (0, 0), (1, 1), len(sigma)))


def _scale(exact: Tensor) -> Tensor:
    """Positive scales: a channel whose gamma is zero borrows the largest, so that its bias fits."""
    scale = exact.float().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(exact == 0, scale.max() if bool((exact > 0).any()) else torch.ones_like(scale), scale)
