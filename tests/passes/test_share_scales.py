"""One quantizer for all inputs of a concatenation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Cat, canonical, check_pass, check_unchanged, image, outputs, seeded, text, trained
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import PassError
from fxcompress.frozen import freeze
from fxcompress.graph import has_module
from fxcompress.passes import QuantizeActivations, ShareScales
from fxcompress.passes.share_scales import find_leaders
from fxcompress.pipeline import run
from fxcompress.render import render
from fxcompress.rules import Quantize

BEFORE = """
    input %x
    %a_weight = a.weight
    %a = conv2d(%x, %a_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %a_quantizer = compression.a_quantizer:Quantizer(%a)
    %b_weight = b.weight
    %b = conv2d(%x, %b_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %b_quantizer = compression.b_quantizer:Quantizer(%b)
    %cat = cat([%a_quantizer, %b_quantizer], 1)
    output %cat
"""
AFTER = BEFORE.replace("compression.b_quantizer:", "compression.a_quantizer:")
ONE_ONLY = """
    input %x
    %a_weight = a.weight
    %a = conv2d(%x, %a_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %a_quantizer = compression.a_quantizer:Quantizer(%a)
    %b_weight = b.weight
    %b = conv2d(%x, %b_weight, None, (1, 1), (0, 0), (1, 1), 1)
    %cat = cat([%a_quantizer, %b], 1)
    output %cat
"""


def quantized(model: nn.Module, **bits: int) -> Any:
    """The model with quantizers of these widths on its activations."""
    net = canonical(model, image())
    rules = {name: Quantize(target="activation", bits=b, first_last_bits=b) for name, b in bits.items()}
    run(net, [QuantizeActivations(rules)])
    return net


class Chain(Cat):
    """Two concatenations that have an input in common, one behind a flatten."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        ab = torch.cat([a.flatten(2), b.flatten(2)], 1)
        return torch.cat([ab, (x * 2).flatten(2), torch.cat([b, x + x], 1).flatten(2)], 1)


class Sum(Cat):
    """Adds what `Cat` concatenates."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x) + self.b(x)
        return out


class Tail(Cat):
    """Concatenates the second convolution with something else."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b(x), x * x], 1)


class Heads(Cat):
    """Concatenates in evaluation only."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.a(x) + self.b(x)
        return torch.cat([self.a(x), self.b(x)], 1)


class TrainedHeads(Heads):
    """Concatenates in training only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.a(x) + self.b(x)
        return torch.cat([self.a(x), self.b(x)], 1)


def test_points_the_inputs_of_a_concatenation_to_one_quantizer() -> None:
    net = quantized(seeded(Cat), a=8, b=8)
    check_pass(net, ShareScales(), before=BEFORE, after=AFTER, example=image())
    assert has_module(net, "compression.b_quantizer")  # another graph of the net may call it


def test_the_widest_grid_serves_the_group() -> None:
    net = quantized(seeded(Cat), a=4, b=8)
    run(net, [ShareScales()])
    assert "%a_quantizer = compression.b_quantizer:Quantizer(%a)" in render(net)
    assert net.get_submodule("compression.b_quantizer").grid.bits == 8


def test_chains_of_concatenations_share_one() -> None:
    net = quantized(seeded(Chain), a=8, b=8, add=8)
    run(net, [ShareScales()])
    assert render(net).count("compression.a_quantizer:Quantizer(") == 3
    assert render(net).count(":Quantizer(") == 3


def test_leaves_alone_a_concatenation_with_a_float_input() -> None:
    check_unchanged(quantized(seeded(Cat), a=8), ShareScales(), ONE_ONLY)


def test_refuses_a_result_that_joins_two_grids() -> None:
    net = quantized(seeded(Cat), a=8, b=8)
    with pytest.raises(
        PassError, match=r"joins the scales of \['compression.a_quantizer', 'compression.b_quantizer'\]"
    ):
        ShareScales().ensures(net)


def test_given_leaders_serve_where_nothing_is_concatenated() -> None:
    net = quantized(seeded(Sum), a=8, b=8)
    leaders = {
        "compression.a_quantizer": "compression.b_quantizer",
        "compression.b_quantizer": "compression.b_quantizer",
    }
    assert run(net, [ShareScales(leaders)])
    assert "%a_quantizer = compression.b_quantizer:Quantizer(%a)" in render(net)
    assert render(net).count("compression.b_quantizer:Quantizer(") == 2
    assert not run(net, [ShareScales(leaders)])


def test_given_leaders_are_all_that_counts() -> None:
    net = quantized(seeded(Cat), a=8, b=8)
    with pytest.raises(
        PassError, match=r"joins the scales of \['compression.a_quantizer', 'compression.b_quantizer'\]"
    ):
        run(net, [ShareScales({})])
    assert render(net) == text(BEFORE)


def test_leaders_are_found_in_all_graphs_together() -> None:
    wide, narrow = quantized(seeded(Cat), a=4, b=8), quantized(seeded(Sum), a=4, b=8)
    b = "compression.b_quantizer"
    assert find_leaders([narrow]) == {}
    assert find_leaders([narrow, wide]) == find_leaders([wide]) == {"compression.a_quantizer": b, b: b}


def test_leaders_join_groups_that_meet_in_no_single_graph() -> None:
    first, second = quantized(seeded(Cat), a=8, b=8), quantized(seeded(Tail), b=8, mul=8)
    a = "compression.a_quantizer"
    assert find_leaders([first, second]) == {a: a, "compression.b_quantizer": a, "compression.mul_quantizer": a}


@pytest.mark.parametrize("model", [Heads, TrainedHeads])
def test_a_concatenation_in_one_mode_leaves_the_other_mode_able_to_run(model: type[Heads]) -> None:
    net = fxc.compress(seeded(model), "Q8(f)", image(), total_steps=4)
    for graph in net.views():
        assert "%a_quantizer = compression.a_quantizer:Quantizer(%a)" in render(graph)
        assert "%b_quantizer = compression.a_quantizer:Quantizer(%b)" in render(graph)
    assert not has_module(net, "compression.b_quantizer")
    assert [e.tensor for e in net.schedule.events] == ["x", "a", "add"]
    assert outputs(net, image()).keys() == {False, True}
    for mode, output in outputs(net, image()).items():
        assert torch.equal(output, seeded(model).train(mode)(image()))


@pytest.mark.parametrize("model", [Heads, TrainedHeads])
def test_a_quantizer_shared_between_modes_observes_and_quantizes_in_both(model: type[Heads]) -> None:
    net = trained(seeded(model), "Q8(f)", image())
    shared = net.get_submodule("compression.a_quantizer")
    assert shared.is_enabled
    on_grid = shared(net.b(net.get_submodule("compression.x_quantizer")(image())))
    for graph in net.views():
        b = next(n for n in graph.graph.nodes if n.name == "b_quantizer")
        assert graph.get_submodule(str(b.target)) is shared
    cat = net.train(model is TrainedHeads)(image())
    assert torch.equal(cat[:, 2:], on_grid)
    add = net.train(model is Heads)(image())
    assert add.shape == (2, 2, 4, 4)
    assert torch.equal(freeze(net)(image()), net.eval()(image()))
