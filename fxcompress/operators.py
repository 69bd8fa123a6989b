"""What each operator means to compression: product, batch norm, activation, elementwise, pooling, value-preserving.

One table per meaning, keyed by what a canonical graph calls: a function, a method name or a module class.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.graph import submodule

CONVOLUTIONS: frozenset[Any] = frozenset({F.conv1d, F.conv2d, F.conv3d})
TRANSPOSED: frozenset[Any] = frozenset({F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})
PRODUCTS: frozenset[Any] = CONVOLUTIONS | TRANSPOSED | {F.linear}
"""Operators with a weight as their second argument: (input, weight, bias, ...)."""
MATMULS: frozenset[Any] = frozenset({torch.matmul, operator.matmul})
"""Products of two tensors, of which either may be a weight; canonical for mm and bmm."""
RECURRENT: frozenset[Any] = frozenset(
    getattr(torch, name)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)
"""Recurrent layers, with their weights and biases among their arguments."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RELUS: frozenset[Any] = frozenset({F.relu, torch.relu, "relu", nn.ReLU})
RELU6S: frozenset[Any] = frozenset({F.relu6, nn.ReLU6})
SIGMOIDS: frozenset[Any] = frozenset({torch.sigmoid, F.sigmoid, "sigmoid", nn.Sigmoid})
SILUS: frozenset[Any] = frozenset({F.silu, nn.SiLU})
POINTWISE: frozenset[Any] = RELUS | RELU6S | SIGMOIDS | SILUS | {
    F.gelu, nn.GELU, F.hardswish, nn.Hardswish, F.hardsigmoid, nn.Hardsigmoid, torch.tanh, "tanh", nn.Tanh,
}  # fmt: skip
"""Activation functions: of one tensor, element by element."""
ADDS: frozenset[Any] = frozenset({torch.add, operator.add})
MULS: frozenset[Any] = frozenset({torch.mul, operator.mul})
MASKINGS: frozenset[Any] = frozenset({
    torch.sub, operator.sub, torch.div, operator.truediv, "div", "sub", torch.masked_fill, "masked_fill", torch.where,
})  # fmt: skip
"""Besides additions and multiplications, what shifts, scales or masks the scores of attention."""
AVERAGE_POOLS: frozenset[Any] = frozenset({F.avg_pool2d, F.adaptive_avg_pool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d})
SOFTMAXES: frozenset[Any] = frozenset({F.softmax, torch.softmax, "softmax", nn.Softmax})
CATS: frozenset[Any] = frozenset({torch.cat})
DROPOUTS: frozenset[Any] = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d}
)
VIEWS: frozenset[Any] = frozenset({
    torch.flatten, nn.Flatten, nn.Unflatten, torch.reshape, "view", "contiguous", torch.permute, torch.transpose,
    torch.squeeze, torch.unsqueeze, torch.chunk, torch.split, torch.unbind, operator.getitem, nn.Identity,
})  # fmt: skip
"""Operators whose output may share its input's memory."""

ZEROS: frozenset[Any] = frozenset({torch.zeros, torch.zeros_like, "new_zeros"})
"""What makes zeros, which lie on every grid."""

MOVES: frozenset[Any] = CATS | VIEWS | {
    torch.stack, torch.t, "t", torch.movedim, "movedim", torch.swapaxes, "swapaxes", torch.narrow, "narrow",
    torch.select, "select", "expand", "clone",
}  # fmt: skip
"""Operators that put a weight's elements elsewhere and compute nothing."""
COPIES: frozenset[Any] = CATS | {torch.stack, "clone"}
"""Of those, the ones whose output has memory of its own."""

STOCHASTIC_DEPTHS = ("stochastic_depth", "StochasticDepth", "drop_path", "DropPath")
"""Functions and modules of torchvision, timm and transformers, by how their names end: none is a dependency."""

VALUE_PRESERVING: frozenset[Any] = CATS | VIEWS | {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    F.adaptive_max_pool2d, nn.AdaptiveMaxPool2d,
    F.pixel_shuffle, nn.PixelShuffle, F.channel_shuffle, nn.ChannelShuffle, F.pixel_unshuffle, nn.PixelUnshuffle,
    torch.roll, nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.UpsamplingNearest2d,
}  # fmt: skip
"""Operators whose outputs are some of their inputs' values, or zero (in evaluation): what is on a grid stays on it."""
NEAREST = ("nearest", "nearest-exact")
"""Modes of resizing that only repeat or leave out values."""


def called(gm: GraphModule, node: Node) -> Any:
    """What `node` calls, as the tables above name it: a function, a method name, a module class, or None."""
    if node.op == "call_module":
        return type(submodule(gm, str(node.target)))
    return node.target if node.op in ("call_function", "call_method") else None


def is_constant(node: Node) -> bool:
    """Whether `node` yields a tensor that depends on no input: a weight, or what is computed from weights."""
    return bool(node.meta.get("constant"))


def is_product(node: Node) -> bool:
    """Whether `node` multiplies an activation by a weight."""
    return node.op == "call_function" and _operands(node) is not None


def is_activation_product(node: Node) -> bool:
    """Whether `node` is a matrix product of two activations."""
    return node.target in MATMULS and all(isinstance(a, Node) and is_activation(a) for a in node.args[:2])


def _operands(node: Node) -> tuple[int, int] | None:
    """Which arguments of a product are its activation and its weight; None if `node` is none."""
    if node.target in PRODUCTS:
        return 0, 1
    first = 1 if node.target is torch.addmm else 0
    if node.target not in MATMULS | {torch.addmm} or node.kwargs:
        return None
    pair = [a for a in node.args[first : first + 2] if isinstance(a, Node)]
    constant = [is_constant(a) and len(shape_of(a)) > 1 for a in pair]
    if len(pair) < 2 or sum(constant) != 1:
        return None
    return (first, first + 1) if constant[1] else (first + 1, first)


def is_batch_norm(gm: GraphModule, node: Node) -> bool:
    """Whether `node` calls a batch norm module."""
    return node.op == "call_module" and isinstance(submodule(gm, str(node.target)), BATCH_NORMS)


def is_fusible_activation(gm: GraphModule, node: Node) -> bool:
    """Whether integer kernels do `node` for free, by saturating where they round."""
    return called(gm, node) in RELUS | RELU6S


def is_pointwise(gm: GraphModule, node: Node) -> bool:
    """Whether `node` is an activation function."""
    return called(gm, node) in POINTWISE


def is_dropout(gm: GraphModule, node: Node) -> bool:
    """Whether `node` drops values in training and hands its input on in evaluation (stochastic depth included)."""
    target = called(gm, node)
    if target not in DROPOUTS and not getattr(target, "__name__", "").endswith(STOCHASTIC_DEPTHS):
        return False
    if node.op == "call_module":
        return True
    # A function follows the mode only where it is handed the mode.
    return any(isinstance(a, Node) and str(a.target).endswith("training") for a in node.all_input_nodes)


def is_value_preserving(gm: GraphModule, node: Node) -> bool:
    """Whether, in evaluation, every output value of `node` is one of its input values, or zero."""
    return called(gm, node) in VALUE_PRESERVING or is_dropout(gm, node) or _pads_or_repeats(gm, node)


def _pads_or_repeats(gm: GraphModule, node: Node) -> bool:
    """Whether `node` pads with zeros or its input's values, or resizes to the nearest value."""
    function = called(gm, node)
    if function is F.pad:
        return argument(node, 2, "mode", "constant") != "constant" or argument(node, 3, "value") in (None, 0)
    if function is F.interpolate:
        return argument(node, 3, "mode", "nearest") in NEAREST
    return function is nn.Upsample and submodule(gm, str(node.target)).mode in NEAREST


def is_move(node: Node) -> bool:
    """Whether `node` only puts elements elsewhere."""
    return node.target in MOVES or (node.target is getattr and node.args[1] in ("T", "mT"))


def is_elementwise(gm: GraphModule, node: Node) -> bool:
    """Whether `node` adds or multiplies two activations, for which runtimes have integer kernels."""
    if called(gm, node) not in ADDS | MULS or node.kwargs:
        return False
    return len(node.args) == 2 and all(isinstance(a, Node) and is_activation(a) for a in node.args)


def has_integer_kernel(gm: GraphModule, node: Node) -> bool:
    """Whether runtimes compute `node` on integers when its inputs and output are quantized."""
    two_tensors = is_elementwise(gm, node) or is_activation_product(node)
    return is_product(node) or two_tensors or called(gm, node) in AVERAGE_POOLS


def hands_out_floats(node: Node) -> bool:
    """Whether runtimes' integer kernels for `node` can end in floats: those of matrix products can."""
    return node.target is F.linear or node.target in MATMULS | {torch.addmm}


def is_activation(node: Node) -> bool:
    """Whether `node` yields a floating-point tensor that depends on the model's inputs."""
    meta = node.meta.get("tensor_meta")
    dtype = getattr(meta, "dtype", None)
    is_floating = dtype is not None and bool(dtype.is_floating_point)
    return is_floating and node.op != "output" and not is_constant(node)


def activation_inputs(node: Node) -> list[Node]:
    """The inputs of `node` that may be activations; of a product or a recurrent layer its input alone."""
    if is_product(node):
        return [input_of(node)]
    inputs = node.args[:1] if node.target in RECURRENT else node.all_input_nodes
    return [n for n in inputs if isinstance(n, Node)]


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of the tensor that `node` yields, as the example inputs made it."""
    return tuple(node.meta["tensor_meta"].shape)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """The argument of `node` given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def input_of(product: Node) -> Any:
    """The node of the activation that a product multiplies."""
    operands = _operands(product)
    assert operands is not None
    return argument(product, operands[0], "input")


def weight_of(product: Node) -> Any:
    """The node that a product takes its weight from."""
    operands = _operands(product)
    assert operands is not None
    return argument(product, operands[1], "weight")


def bias_of(product: Node) -> Any:
    """The node that a product takes its bias from, or None."""
    if product.target is torch.addmm:
        return product.args[0]
    return argument(product, 2, "bias") if product.target in PRODUCTS else None


def weights_of(node: Node) -> list[tuple[Node, int]]:
    """The weights that `node` computes with, each with the axis that counts its output channels (or rows)."""
    if node.op != "call_function":
        return []
    if is_product(node):
        return [(weight_of(node), channel_axis(node))]
    if node.target is F.embedding:
        return [(n, 0) for n in [argument(node, 1, "weight")] if is_constant(n)]
    if node.target is torch.einsum:
        axes = {n: _einsum_axis(node, n) for n in node.all_input_nodes if is_constant(n)}
        return [(n, axis) for n, axis in axes.items() if axis is not None]
    if node.target in RECURRENT:
        return [(n, 0) for n in node.all_input_nodes[1:] if is_constant(n) and len(shape_of(n)) > 1]
    return []


def channel_axis(product: Node) -> int:
    """The axis of a product's weight that counts output channels (per group, for transposed convolutions)."""
    if product.target in PRODUCTS:
        return 1 if product.target in TRANSPOSED else 0
    operands = _operands(product)
    assert operands is not None
    axes = len(shape_of(weight_of(product)))
    return axes - 1 if operands[0] < operands[1] else axes - 2


def _einsum_axis(node: Node, weight: Node) -> int | None:
    """The last axis of `weight` that an einsum keeps and the other operands do not have."""
    if not isinstance(node.args[0], str) or len(_einsum_sizes(node)) == 0 or len(shape_of(weight)) < 2:
        return None
    terms, _, output = node.args[0].replace(" ", "").partition("->")
    labels = terms.split(",")
    position = list(_einsum_operands(node)).index(weight)
    others = "".join(term for i, term in enumerate(labels) if i != position)
    free = [axis for axis, label in enumerate(labels[position]) if label in output and label not in others]
    return free[-1] if free else None


def _einsum_operands(node: Node) -> tuple[Node, ...]:
    operands: Any = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return tuple(operands)


def _einsum_sizes(node: Node) -> dict[str, int]:
    """The size of every label; none where the equation has dots."""
    terms, arrow, _ = str(node.args[0]).replace(" ", "").partition("->")
    if "." in terms or not arrow:
        return {}
    labelled = zip(terms.split(","), _einsum_operands(node), strict=True)
    return {label: size for term, operand in labelled for label, size in zip(term, shape_of(operand), strict=True)}


def macs(node: Node, weight: Node) -> int:
    """Multiply-accumulates of `node` with one of its weights over the whole example batch (groups counted)."""
    shape = shape_of(weight)
    if node.target is F.embedding:
        return 0
    if node.target is torch.einsum:
        return math.prod(_einsum_sizes(node).values())
    if node.target in RECURRENT:
        return math.prod(shape_of(node.args[0])[:-1]) * math.prod(shape)  # type: ignore[arg-type]
    if node.target in TRANSPOSED:
        return math.prod(shape_of(input_of(node))) * math.prod(shape[1:])
    if node.target in PRODUCTS:
        return math.prod(shape_of(node)) * math.prod(shape[1:])
    return math.prod(shape_of(node)) * shape[-2 if channel_axis(node) == len(shape) - 1 else -1]
