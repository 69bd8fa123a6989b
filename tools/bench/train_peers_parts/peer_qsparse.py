"""qsparse: `convert` with masks of 50 % and then int8, on every convolution's and linear layer's weights and on what
batch norms give.

Masks are of single elements and settled, as ours are; its default is whole input channels, chosen anew at every step.
Scales follow the tensors all the time; activations have one scale each, where its default is one a channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qsparse import MagnitudePruningCallback, convert, prune, quantize, set_qsparse_options
from torch import nn

from train_peers_parts.training import Batch, Compressed, count, warmed

DOES = "weights and activations: int8 and 50 % of single elements"
WEIGHTS, ACTIVATIONS = [nn.Conv2d, nn.Linear], [nn.BatchNorm2d]
SETTLED = 4
"""Steps from the first mask to the last."""


def compressed(model: nn.Module, batch: Batch) -> Compressed:
    """The step when masks are settled."""
    set_qsparse_options(log_on_created=False, log_during_train=False)
    net = convert(model, _half({0, 1, 2, 3}), weight_layers=WEIGHTS, log=False)
    net = convert(net, _half({1, 2, 3}), activation_layers=ACTIVATIONS, log=False)
    net = convert(net, quantize(bits=8, channelwise=0, timeout=1), weight_layers=WEIGHTS, log=False)
    to_int8 = quantize(bits=8, channelwise=-1, timeout=1)
    net = convert(net, to_int8, activation_layers=ACTIVATIONS, input=True, log=False)
    step = warmed(net.train(), batch)
    return Compressed(step, count(net, "QuantizeLayer"), count(net, "PruneLayer"))


def _half(dimensions: Iterable[int]) -> Any:
    """Half of the elements of these dimensions at step 1, chosen until `SETTLED` steps later."""
    magnitude = MagnitudePruningCallback(stop_mask_refresh=SETTLED)
    return prune(sparsity=0.5, dimensions=dimensions, callback=magnitude, start=1, interval=1, repetition=1)
