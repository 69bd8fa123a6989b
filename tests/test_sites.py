"""Where a net can be pruned and quantized."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Cat, ConvBnRelu, Does, Fc, Mlp, Residual, Shared, canonical, image, rows, seeded
from torch import Tensor, nn

from fxcompress.passes import PruneWeights, QuantizeActivations, QuantizeWeights
from fxcompress.pipeline import run
from fxcompress.rules import Prune, Quantize
from fxcompress.sites import Site, find_sites, sources, strip, tail, unit_end, unit_members


class Net(nn.Module):
    """Three units, one residual addition, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = seeded(ConvBnRelu)
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = F.relu(self.bn(self.conv(y)) + y)
        return self.fc(self.pool(y).flatten(1))


def sites(model: nn.Module, example: Tensor) -> dict[str, Site]:
    found = find_sites(canonical(model, example))
    assert len({s.name for s in found}) == len(found)
    return {s.name: s for s in found}


def names(model: nn.Module, example: Tensor, chosen: Callable[[Site], bool] = lambda s: True) -> list[str]:
    return [name for name, site in sites(model, example).items() if chosen(site)]


def test_weights_come_first_then_activations_in_graph_order() -> None:
    expected = ["stem.conv.weight", "conv.weight", "fc.weight", "x", "stem.relu", "bn", "relu", "pool", "fc"]
    assert names(Net(), image()) == expected


def test_ends_of_products_units_are_prunable_unless_they_are_outputs() -> None:
    prunable = names(Net(), image(), lambda s: s.prunable)
    assert prunable == ["stem.conv.weight", "conv.weight", "fc.weight", "stem.relu", "bn"]


def test_tensors_of_the_first_and_last_product_are_edges() -> None:
    edges = names(Net(), image(), lambda s: s.is_edge)
    assert edges == ["stem.conv.weight", "fc.weight", "x", "stem.relu", "pool", "fc"]


def test_match_sees_names_and_classes_of_a_whole_unit() -> None:
    found = sites(Net(), image())
    assert found["stem.relu"].names == ("stem.relu", "stem.bn", "stem.conv")
    assert found["stem.relu"].types == ("ReLU", "BatchNorm2d", "Conv2d")
    assert found["conv.weight"].names == ("conv.weight", "conv")
    assert found["conv.weight"].types == ("Conv2d",)
    assert found["x"].types == ("input",)


@pytest.mark.parametrize(
    ("model", "example", "output"),
    [
        (seeded(ConvBnRelu), image(), "relu"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()), image(), "0"),
        (seeded(Cat), image(), "b"),
    ],
)
def test_outputs_are_never_pruned(model: nn.Module, example: Tensor, output: str) -> None:
    found = sites(model, example)
    assert found[output].quantizable
    assert not found[output].prunable


def test_an_output_s_float_function_lets_what_is_before_it_be_pruned() -> None:
    assert sites(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), rows())["0"].prunable


@pytest.mark.parametrize("order", ["fc fc last", "last fc fc", "fc fc fc"])
def test_a_shared_weight_is_one_site_and_an_edge_if_any_use_is(order: str) -> None:
    class Thrice(Shared):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for name in order.split():
                x = F.relu(getattr(self, name)(x))
            return x

    found = sites(Thrice(), rows())
    assert [name for name in found if name.endswith("weight")] == [f"{n}.weight" for n in dict.fromkeys(order.split())]
    assert found["fc.weight"].is_edge


def test_inputs_of_a_concatenation_are_sites_and_its_output_is_none() -> None:
    class Plain(Cat):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([F.max_pool2d(super().forward(x), 2), F.avg_pool2d(x, 2), x[:, :, ::2, ::2]], 1))

    assert names(Plain(), image(), lambda s: s.kind == "activation") == ["x", "a", "b", "avg_pool2d", "c"]


def test_a_computed_weight_is_known_by_its_layer() -> None:
    class Standardized(Fc):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.fc.weight - self.fc.weight.mean())

    found = sites(Standardized(), rows())["linear.weight"]
    assert (found.kind, found.axis, found.prunable, found.quantizable) == ("weight", 0, True, True)


def test_a_weight_that_depends_on_the_input_is_left_alone_with_a_reason() -> None:
    class Dynamic(Fc):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.fc.weight * x.mean())

    found = sites(Dynamic(), rows())["mul"]
    assert (found.kind, found.prunable, found.quantizable) == ("weight", False, False)
    assert found.reason == "the weight depends on the model's inputs"


def test_parts_and_transposes_of_a_weight_are_that_weight() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.w.chunk(2)
            return F.linear(x, a) + F.linear(x, b) + torch.cat([x @ self.v, x], 1)[:, :3]

    found = sites(Parts(), rows())
    assert [(s.name, s.axis) for s in found.values() if s.kind == "weight"] == [("w", 0), ("v", 1)]


def test_two_products_that_count_channels_along_different_axes_share_one_scale() -> None:
    class Both(Fc):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) @ self.fc.weight

    assert sites(Both(), rows())["fc.weight"].axis is None


def test_batch_norm_and_relu_belong_to_a_unit_only_as_sole_users() -> None:
    class Tapped(ConvBnRelu):
        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            return self.relu(y) + y

    net = canonical(Tapped(), image())
    conv = next(n for n in net.graph.nodes if n.name == "conv")
    assert unit_end(net, conv).name == "bn"
    assert names(Tapped(), image(), lambda s: s.prunable) == ["conv.weight", "bn"]
    whole = canonical(seeded(ConvBnRelu), image())
    assert [n.name for n in unit_members(whole, next(n for n in whole.graph.nodes if n.name == "relu"))] == [
        "relu",
        "bn",
        "conv",
    ]


def test_elementwise_operators_on_a_number_are_no_units() -> None:
    class Scale(Fc):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * 2 + 1

    assert names(Scale(), rows(), lambda s: s.kind == "activation") == ["x", "fc"]


def test_sites_are_the_same_behind_pruners_and_quantizers() -> None:
    net = canonical(seeded(Residual), image())
    before = [(s.name, s.node, s.prunable, s.is_edge) for s in find_sites(net)]
    quantize = Quantize(target="activation", bits=8)
    run(
        net,
        [
            PruneWeights({"conv.weight": Prune(target="weight", sparsity=0.5)}),
            QuantizeWeights({"conv.weight": Quantize(target="weight", bits=8)}),
            QuantizeActivations({"x": quantize, "conv": quantize, "add_": quantize}),
        ],
    )
    assert [(s.name, s.node, s.prunable, s.is_edge) for s in find_sites(net)] == before
    weight = before[0][1]
    assert tail(net, weight).name == "conv_weight_quantizer"
    assert strip(net, tail(net, weight)) is weight
    assert [n.name for n in sources(net, net.graph.output_node().args[0])] == ["add_"]  # type: ignore[arg-type]


def test_the_axis_of_a_weight_counts_its_output_channels() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 2, 1))
    assert [s.axis for s in sites(model, image()).values()] == [1, 0, None, None, None]


def test_sites_of_an_mlp() -> None:
    assert names(seeded(Mlp), rows()) == ["fc1.weight", "fc2.weight", "x", "relu", "fc2"]


class Attention(nn.Module):
    """Scores that are scaled, shifted and masked, then a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 3) for _ in range(3))
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        scores = (scores * 0.5 + self.shift + x @ x.transpose(0, 1)).masked_fill(x.sum() > 100, -1e9)
        out: Tensor = torch.softmax(scores, -1) @ self.v(x)
        return out


def test_scores_that_only_a_softmax_reads_stay_float() -> None:
    found = sites(Attention(), rows())
    left = [name for name, s in found.items() if s.kind == "activation" and not s.quantizable]
    assert left == ["matmul", "matmul_1"]
    assert found["matmul"].reason == "only a softmax reads it, which is computed in float"
    quantizable = [name for name, s in found.items() if s.kind == "activation" and s.quantizable]
    assert quantizable == ["x", "q", "k", "softmax", "v", "matmul_2"]


def test_a_convolution_before_a_softmax_has_no_float_kernel() -> None:
    found = sites(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Softmax(1), nn.Conv2d(2, 2, 1)), image())
    assert found["0"].quantizable


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: F.pad(x, (1, 1, 0, 0)),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.interpolate(x, scale_factor=2.0),
        lambda x: F.interpolate(x, size=(6, 6), mode="nearest-exact"),
        lambda x: torch.roll(x, 1, 2),
        nn.ZeroPad2d(1),
        nn.Upsample(scale_factor=2),
    ],
)
def test_padding_and_repeating_keep_the_grid(forward: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), Does(lambda m, x: forward(x)), nn.Conv2d(2, 2, 1))
    assert names(model, image(), lambda s: s.kind == "activation") == ["input", "0", "2"]


@pytest.mark.parametrize(
    "forward",
    [lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")],
)
def test_other_padding_and_resizing_make_a_grid_of_their_own(forward: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), Does(lambda m, x: forward(x)), nn.Conv2d(2, 2, 1))
    assert len(names(model, image(), lambda s: s.kind == "activation")) == 4
