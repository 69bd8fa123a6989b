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

from fxcompress import bias_kernels
from fxcompress.graph import module_of
from fxcompress.integer import per_output_channel
from fxcompress.joint_calls import has_hooks
from fxcompress.kernels import is_eager
from fxcompress.operators import PRODUCTS, bias_of, channel_axis, input_of, is_constant, shape_of, weight_of
from fxcompress.placement import LARGEST, folded_product, quantizers_before
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer
from fxcompress.rounding import LEAST

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


Product = tuple[Quantizer, Quantizer, Any, Tensor | None]
"""The quantizers of a product's input and of its weight, the batch norm that folds into it, and its own bias; either of
the last two may be missing."""


class RoundedBiases:
    """The rounded bias of each product, of shape [channels]: that of its batch norm (the shift if that has none), else
    its own. Where sums are no integers yet, None for a batch norm's, and the bias itself.

    Those with a batch norm come first. All are rounded as one vector: alone they are too small to call for.
    """

    def __init__(self, quantizers: list[tuple[Quantizer, Quantizer]]) -> None:
        self.__name__ = "rounded_biases"
        self.quantizers = quantizers

    def __call__(self, *others: tuple[Any, Tensor | None]) -> list[Tensor | None]:
        """Of the batch norms and the biases."""
        found = [bias if norm is None else None for norm, bias in others]
        acting = [i for i, (x, w) in enumerate(self.quantizers) if x.is_enabled and w.is_enabled]
        if not acting:
            return found
        these: list[Product] = [(*self.quantizers[i], *others[i]) for i in acting]
        biases = [bias_of_product(product) for product in these]
        each = rounded_together(these, *biases) if torch.compiler.is_compiling() else _Rounded.apply(these, *biases)
        for i, one in zip(acting, each, strict=True):
            found[i] = one
        return found


def rounded_together(products: list[Product], *biases: Tensor) -> tuple[Tensor, ...]:
    """The biases of these products, each of shape [channels], rounded as one vector."""
    joined, counts = torch.cat(biases), [len(bias) for bias in biases]
    rounded = torch.split_with_sizes(joined + _shifts(products, joined, counts), counts)
    return tuple(one.to(bias.dtype) for one, bias in zip(rounded, biases, strict=True))


class _Rounded(torch.autograd.Function):
    """Their gradients are those of what they are rounded to, so that there is nothing to compute on the way back."""

    @staticmethod
    def forward(ctx: Any, products: list[Product], *biases: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        if is_eager():
            each = [tensors_of(product, bias) for product, bias in zip(products, biases, strict=True)]
            if bias_kernels.has_loop(each):
                return bias_kernels.rounded(each, [0.0 if norm is None else norm.eps for _, _, norm, _ in products])
        return rounded_together(products, *biases)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *grads


def bias_of_product(product: Product) -> Tensor:
    """What is rounded, of shape [channels]."""
    _, _, norm, bias = product
    if norm is not None:
        bias = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    assert bias is not None
    return bias


def tensors_of(product: Product, bias: Tensor) -> bias_kernels.Tensors:
    """What the rounding of this bias depends on."""
    of_input, of_weight, norm, own = product
    scales = _scale(of_weight), _scale(of_input)
    if norm is None:
        return bias, None, None, None, None, *scales
    statistics = norm._buffers
    return bias, statistics["running_mean"], statistics["running_var"], norm.weight, own, *scales


@torch.no_grad()
def _shifts(products: list[Product], biases: Tensor, counts: list[int]) -> Tensor:
    """What rounding adds to the joined biases, float32."""
    exact = biases.to(torch.float32, copy=True)
    gain = torch.ones_like(exact)
    if products[0][2] is not None:
        of_norms, means = _gains_and_means([p for p in products if p[2] is not None])
        gain[: len(means)] = of_norms
        exact[: len(means)] -= means * of_norms
    steps = gain.abs_()
    steps = torch.where(steps == 0, 1.0, steps)  # as folding leaves it
    steps *= torch.cat([_scale(product[0]).expand(n) for product, n in zip(products, counts, strict=True)])
    of_weights = [per_output_channel(_scale(product[1]), n) for product, n in zip(products, counts, strict=True)]
    steps *= torch.cat([s if s.ndim else s.expand(n) for s, n in zip(of_weights, counts, strict=True)])
    steps.clamp_(min=LEAST)
    shifts = torch.div(exact, steps).round_().mul_(steps).sub_(exact)
    return shifts.nan_to_num_(0.0, 0.0, 0.0)  # statistics that overflowed are no part of training


def _gains_and_means(products: list[Product]) -> tuple[Tensor, Tensor]:
    """gamma / sigma, and the mean less the product's own bias, of all channels."""
    norms = [norm for _, _, norm, _ in products]
    variances = torch.cat([n.running_var for n in norms]).float()
    gammas = torch.cat([torch.ones_like(n.running_var) if n.weight is None else n.weight for n in norms]).float()
    eps = {n.eps for n in norms}
    least = eps.pop() if len(eps) == 1 else torch.cat([torch.full_like(n.running_var, n.eps) for n in norms]).float()
    means = torch.cat([n.running_mean for n in norms]).float()
    if any(bias is not None for *_, bias in products):
        means -= torch.cat([torch.zeros_like(n.running_mean) if b is None else b for _, _, n, b in products])
    wide = torch.float64 if variances.is_cpu else torch.float32  # there a root of float32 may be off by one bit
    return gammas / torch.sqrt((variances + least).to(wide)).float(), means


def _scale(quantizer: Quantizer) -> Tensor:
    if quantizer.plan.learned:
        return quantizer.chosen()[0].detach()
    scale = quantizer._buffers["scale"]
    assert scale is not None
    return scale


def normed(x: Tensor, norm: Any, bias: Tensor | None) -> Tensor:
    """Batch norm of an `x` of shape (N, channels, ...) with this bias in the place of its own, if there is one; for
    PyTorch's own modules in no pass over memory more."""
    if bias is None:
        return norm(x)  # type: ignore[no-any-return]
    if type(norm) not in _PLAIN or norm.bias is None or norm.momentum is None or has_hooks(norm):
        # Before the call, since what is sharded is whole until then.
        shift = (bias if norm.bias is None else bias - norm.bias).detach()
        y = norm(x)
        return y + shift.to(y.dtype).view(-1, *[1] * (y.ndim - 2))  # type: ignore[no-any-return]
    if norm.training:
        norm.num_batches_tracked.add_(1)
    statistics = norm.running_mean, norm.running_var
    return F.batch_norm(x, *statistics, norm.weight, bias, norm.training, norm.momentum, norm.eps)


@dataclass(frozen=True)
class Sums:
    """A product whose sums are integers once the quantizers of these nodes are enabled."""

    product: Node
    of_input: str
    of_weight: str


def round_biases(graph: Graph, net: Any) -> None:
    """Let the biases of `graph`, which calls the modules of `net`, be rounded; together, but for computed ones."""
    together: list[tuple[Sums, Node | None]] = []
    for sums in _all_sums(graph, net):
        product, bias = sums.product, bias_of(sums.product)
        norm = next((n for n in product.users if folded_product(net, n) is product), None)
        if (bias is None and norm is None) or not (bias is None or _is_one_a_channel(bias, product)):
            continue
        if bias is None or bias.op == "get_attr":
            together.append((sums, norm))
        else:
            _round(graph, net, [(sums, norm)], norm or product)
    if together:
        together.sort(key=lambda pair: pair[1] is None)
        _round(graph, net, together, next(node for node in graph.nodes if node.op != "placeholder"))


def _round(graph: Graph, net: Any, pairs: list[tuple[Sums, Node | None]], first: Node) -> None:
    """Let the biases of these products, or of the batch norms behind them, be what is computed right before `first`."""
    quantizers = [(net.get_submodule(sums.of_input), net.get_submodule(sums.of_weight)) for sums, _ in pairs]
    with graph.inserting_before(first):
        others = tuple(_read(graph, sums, norm) for sums, norm in pairs)
        found = graph.call_function(RoundedBiases(quantizers), others)
    for i, ((sums, norm), (module, _)) in enumerate(zip(pairs, others, strict=True)):
        with graph.inserting_before(norm or sums.product):
            rounded = graph.call_function(operator.getitem, (found, i))
        if norm is not None:
            norm.op, norm.target, norm.args = "call_function", normed, (norm.args[0], module, rounded)
        else:
            sums.product.replace_input_with(bias_of(sums.product), rounded)


def _read(graph: Graph, sums: Sums, norm: Node | None) -> tuple[Any, Any]:
    """The batch norm and the bias of one product, read anew where its own nodes may stand further down."""
    bias = bias_of(sums.product)
    if isinstance(bias, Node) and bias.op == "get_attr":
        bias = graph.get_attr(str(bias.target))
    return None if norm is None else graph.get_attr(str(norm.target)), bias


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
