"""The text of a graph."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import torch
from helpers import ConvBnRelu, Fc, canonical, captured, image, rows, seeded, text
from torch import Tensor, nn

from fxcompress.qdq import DEQUANTIZE
from fxcompress.render import render

Pair = namedtuple("Pair", ["left", "right"])


def test_inputs_attributes_functions_modules_and_output() -> None:
    expected = """
        input %x
        %conv_weight = conv.weight
        %conv = conv2d(%x, %conv_weight, None, (1, 1), (0, 0), (1, 1), 1)
        %bn = bn:BatchNorm2d(%conv)
        %relu = relu:ReLU(%bn)
        output %relu
    """
    assert render(captured(seeded(ConvBnRelu), image())) == text(expected)


def test_defaults_methods_keywords_and_containers() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
            z = torch.cat([x.mean(dim=1, keepdim=True), x[:, 1:]], dim=1)
            return {"sum": (z, [x]), "pair": Pair(z, "text")}

    expected = """
        input %x
        input %y = None
        %mean = .mean(%x, dim=1, keepdim=True)
        %getitem = getitem(%x, (slice(None, None, None), slice(1, None, None)))
        %cat = cat([%mean, %getitem], dim=1)
        %Pair = Pair(%cat, 'text')
        output {'sum': (%cat, [%x]), 'pair': %Pair}
    """
    net = captured(Model(), {"x": rows(), "y": rows()})
    assert render(net) == text(expected)


def test_equal_graphs_have_equal_texts() -> None:
    net = canonical(seeded(Fc), rows())
    assert render(net) == render(copy.deepcopy(net)) == render(canonical(seeded(Fc), rows()))


def test_an_operator_s_overload_is_left_out_and_a_missing_module_named() -> None:
    net = captured(seeded(Fc), rows())
    output = net.graph.output_node()
    with net.graph.inserting_before(output):
        dequantized = net.graph.create_node("call_function", DEQUANTIZE, output.args, name="stored")
        net.graph.create_node("call_function", torch.ops.aten.add.Tensor, (dequantized, 1), name="total")
        net.graph.create_node("call_module", "fc.nowhere", (dequantized,))
    expected = """
        %stored = dequantize(%fc)
        %total = add.Tensor(%stored, 1)
        %fc_nowhere = fc.nowhere:missing(%stored)
        output %fc
    """
    assert render(net).splitlines()[-4:] == text(expected).splitlines()
