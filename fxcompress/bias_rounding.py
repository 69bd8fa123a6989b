"""Biases on the grid of their product's sums, as they are in the file: in the graph that runs, from when the product's
input and weight are both quantized.

A step of the sums is s_x s_w, and behind batch norm s_x s_w |gamma| / sigma. It is large where a channel's inputs are
nearly dead, so that rounding moves the outputs by steps of their own; a net that sees this in training learns to live
with it. Rounding is straight-through: it adds a constant to the bias. Behind batch norm that follows from the running
statistics in training, too, since they are what folds.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from fxcompress.graph import module_of
from fxcompress.integer import per_output_channel
from fxcompress.joint_calls import has_hooks
from fxcompress.operators import PRODUCTS, bias_of, channel_axis, input_of, is_constant, shape_of, weight_of
from fxcompress.placement import LARGEST, folded_product, quantizers_before
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

_LEAST = 1e-30
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def rounded_bias(bias: Tensor, of_input: Quantizer, of_weight: Quantizer) -> Tensor:
    """A product's own bias, of shape [channels], on the grid of its sums."""
    if not (of_input.is_enabled and of_weight.is_enabled):
        return bias
    with torch.no_grad():
        exact = bias.float()
        scale, scales = _scales(of_input, of_weight, len(bias))
        step = (scale * scales).clamp_(min=_LEAST)
        shift = torch.div(exact, step).round_().mul_(step).sub_(exact).nan_to_num_(0.0, 0.0, 0.0)
    return bias + shift.to(bias.dtype)


Normed = tuple[Quantizer, Quantizer, Any, Tensor | None]
"""What a product and the batch norm that folds into it consist of: the quantizers of its input and of its weight, the
batch norm, and the product's own bias, if it has one."""


def bias_shifts(*products: Normed) -> list[Tensor | None]:
    """What rounding adds to the bias of each batch norm, of shape [channels]; None where sums are no integers yet.

    Operator by operator, each on one after the other: alone they are too small to call for.
    """
    acting = [i for i, (of_input, of_weight, *_) in enumerate(products) if of_input.is_enabled and of_weight.is_enabled]
    found = dict(zip(acting, _shifts([products[i] for i in acting]), strict=True)) if acting else {}
    return [found.get(i) for i in range(len(products))]


@torch.no_grad()
def _shifts(products: list[Normed]) -> list[Tensor]:
    norms = [norm for _, _, norm, _ in products]
    variances = [n.running_var.float() for n in norms]
    gammas = [
        torch.ones_like(v) if n.weight is None else n.weight.float() for n, v in zip(norms, variances, strict=True)
    ]
    betas = [torch.zeros_like(v) if n.bias is None else n.bias.float() for n, v in zip(norms, variances, strict=True)]
    means = [n.running_mean.float() if b is None else n.running_mean.float() - b.float() for _, _, n, b in products]
    sigmas = torch._foreach_sqrt(torch._foreach_add(variances, [n.eps for n in norms]))
    gains = torch._foreach_div(gammas, sigmas)
    biases = torch._foreach_sub(betas, torch._foreach_mul(means, gains))
    steps = _steps(products, torch._foreach_abs(gains))
    shifts = torch._foreach_div(biases, steps)
    torch._foreach_round_(shifts)
    torch._foreach_mul_(shifts, steps)
    torch._foreach_sub_(shifts, biases)
    for shift in shifts:
        shift.nan_to_num_(0.0, 0.0, 0.0)  # statistics that overflowed are no part of training
    return list(shifts)


def _steps(products: list[Normed], gains: Any) -> Any:
    """s_x s_w |gamma| / sigma, in the memory of the last; where gamma is zero s_x s_w, as folding leaves it."""
    is_zero = torch._foreach_sign(gains)
    torch._foreach_mul_(is_zero, -1.0)
    torch._foreach_add_(is_zero, 1.0)
    torch._foreach_add_(gains, is_zero)
    scales = [
        _scales(of_input, of_weight, len(g)) for (of_input, of_weight, *_), g in zip(products, gains, strict=True)
    ]
    for which in zip(*scales, strict=True):
        torch._foreach_mul_(gains, list(which))
    torch._foreach_clamp_min_(gains, _LEAST)
    return gains


def _scales(of_input: Quantizer, of_weight: Quantizer, channels: int) -> tuple[Tensor, Tensor]:
    """Of the input, [], and of the weight, [] or [channels]."""
    (x, _), (w, _) = of_input.chosen(), of_weight.chosen()
    return x.detach(), per_output_channel(w.detach(), channels)


def shifted_norm(x: Tensor, norm: Any, shift: Tensor | None) -> Tensor:
    """Batch norm with a shifted bias of an `x` of shape (N, channels, ...), in no pass more if it can."""
    if shift is None:
        return norm(x)  # type: ignore[no-any-return]
    if type(norm) not in _PLAIN or norm.bias is None or norm.momentum is None or has_hooks(norm):
        y = norm(x)
        return y + shift.to(y.dtype).view(-1, *[1] * (y.ndim - 2))  # type: ignore[no-any-return]
    if norm.training:
        norm.num_batches_tracked.add_(1)
    bias = norm.bias + shift.to(norm.bias.dtype)
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, bias, norm.training, norm.momentum, norm.eps
    )


@dataclass(frozen=True)
class Sums:
    """A product whose sums are integers once the quantizers of these nodes are enabled."""

    product: Node
    of_input: str
    of_weight: str


def round_biases(graph: Graph, net: Any) -> None:
    """Let the biases of `graph`, which calls the modules of `net`, be rounded."""
    together: dict[Node, Sums] = {}
    for sums in _all_sums(graph, net):
        product, bias = sums.product, bias_of(sums.product)
        norm = next((n for n in product.users if folded_product(net, n) is product), None)
        if bias is not None and not _is_one_a_channel(bias, product):
            continue
        if norm is None and bias is not None:
            with graph.inserting_before(product):
                quantizers = [graph.get_attr(path) for path in (sums.of_input, sums.of_weight)]
                product.replace_input_with(bias, graph.call_function(rounded_bias, (bias, *quantizers)))
        elif norm is not None and (bias is None or bias.op == "get_attr"):
            together[norm] = sums
        elif norm is not None:
            _shift(graph, {norm: sums}, norm)
    if together:
        _shift(graph, together, next(node for node in graph.nodes if node.op != "placeholder"))


def _shift(graph: Graph, norms: dict[Node, Sums], first: Node) -> None:
    """Let the biases of these batch norms be shifted, by what is computed right before `first`."""
    with graph.inserting_before(first):
        shifts = graph.call_function(bias_shifts, tuple(_normed(graph, n, sums) for n, sums in norms.items()))
    for i, node in enumerate(norms):
        with graph.inserting_before(node):
            norm, shift = graph.get_attr(str(node.target)), graph.call_function(operator.getitem, (shifts, i))
        node.op, node.target, node.args = "call_function", shifted_norm, (node.args[0], norm, shift)


def _normed(graph: Graph, norm: Node, sums: Sums) -> tuple[Any, ...]:
    bias = bias_of(sums.product)
    if isinstance(bias, Node) and bias.op == "get_attr":
        bias = graph.get_attr(str(bias.target))
    return *(graph.get_attr(path) for path in (sums.of_input, sums.of_weight, str(norm.target))), bias


def _all_sums(graph: Graph, net: Any) -> list[Sums]:
    before = quantizers_before(net, graph)
    found = []
    for product in [n for n in graph.nodes if n.target in PRODUCTS]:
        weight = weight_of(product)
        while isinstance(module_of(net, weight), Pruner):
            weight = weight.args[0]
        of_weight, of_input = module_of(net, weight), before.get(input_of(product))
        if of_input is None or not isinstance(of_weight, Quantizer) or of_weight.plan.block:
            continue
        if _fits_int32(product, net.get_submodule(of_input), of_weight):
            found.append(Sums(product, of_input, str(weight.target)))
    return found


def _fits_int32(product: Node, of_input: Quantizer, of_weight: Quantizer) -> bool:
    """Whether a product's sums are int32 whatever its weight is."""
    shape = shape_of(weight_of(product))
    terms = math.prod(shape) // shape[channel_axis(product)]
    return bool(terms * 2**of_input.grid.bits * of_weight.grid.levels < LARGEST)


def _is_one_a_channel(bias: Any, product: Node) -> bool:
    axis = -1 if product.target is F.linear else 1 - len(shape_of(weight_of(product)))
    return is_constant(bias) and shape_of(bias) == shape_of(product)[axis:][:1]
