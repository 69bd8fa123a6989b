"""In the graph that runs, biases lie on the grid of their product's sums, as in the file."""

from __future__ import annotations

import operator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ConvBnRelu, Does, Fc, image, rows, seeded, trained
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress import bias_kernels
from fxcompress.bias_rounding import RoundedBiases, bias_of_product, normed, rounded_together, tensors_of
from fxcompress.frozen import freeze
from fxcompress.fusing import fused
from fxcompress.grid import Grid
from fxcompress.quantizer import Plan, Quantizer

SPEC = "Q8(w,f)@1"
INT8 = Grid(8, signed=True, symmetric=True)


def nearly_dead(**options: Any) -> nn.Module:
    """A depthwise layer whose second channel sees next to nothing, before a batch norm that makes much of it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, **options), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 3, 1),
    )  # fmt: skip
    with torch.no_grad():
        model[3].bias.uniform_(-1, 1)
        model[3].running_var[1] = 0.0
        model[3].weight.copy_(torch.tensor([1.0, 8.0, -1.5, 0.5]))
    return model


def calls(net: Any, function: Any) -> list[Any]:
    return [n for n in fused(net.graph, net).nodes if n.target is function or type(n.target) is function]


def rounded(net: Any) -> list[Tensor | None]:
    """What the only call for rounded biases gives."""
    [call] = calls(net, RoundedBiases)
    read = operator.attrgetter
    found: list[Tensor | None] = call.target(
        *(tuple(None if a is None else read(str(a.target))(net) for a in product) for product in call.args)
    )
    return found


def is_its_frozen_one(net: Any, x: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(net.eval()(x), freeze(net)(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_trained_net_in_evaluation_is_its_frozen_one(has_bias: bool) -> None:
    model = nearly_dead(bias=has_bias)
    net = trained(model.eval(), SPEC, image())
    assert len(calls(net, normed)) == 1
    assert is_its_frozen_one(net, image())
    bias, *_ = rounded(net)
    assert bias is not None
    assert float((bias - net.get_submodule("3").bias).detach().abs().max()) > 1e-3  # far more than is allowed above


@given(st.integers(0, 99), st.booleans(), st.booleans())
def test_shifts_are_what_the_file_adds(seed: int, has_bias: bool, is_transposed: bool) -> None:
    torch.manual_seed(seed)
    kind = nn.ConvTranspose2d if is_transposed else nn.Conv2d
    norm = nn.BatchNorm2d(5)
    for t in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(t)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 1e-6, 1.0)  # type: ignore[arg-type]
    net = trained(nn.Sequential(kind(3, 5, 1, bias=has_bias), norm).eval(), SPEC, image())
    module = net.get_submodule("1")
    gain = module.weight.double() / torch.sqrt(module.running_var.double() + module.eps)
    own = net.get_submodule("0").bias.double() if has_bias else 0.0
    exact = module.bias.double() + (own - module.running_mean.double()) * gain
    constants = freeze(net).get_submodule("0")
    stored = constants.bias_integers.double() * constants.bias_scale.double()
    [bias] = rounded(net)
    assert bias is not None
    step = constants.bias_scale.double()
    q = exact / step
    is_tie = (q % 1 - 0.5).abs() < 1e-3 + 1e-6 * q.abs()  # float32 may see it on the other side
    off = (exact + (bias.double() - module.bias.double()) - stored).abs()
    own_size = net.get_submodule("0").bias.abs() if has_bias else 0.0
    sizes = module.bias.abs() + (own_size + module.running_mean.abs()) * gain.abs()  # of what is added up, in float32
    assert bool((is_tie | (off < 3e-6 * (sizes + step))).all())


def test_a_product_s_own_bias_is_rounded() -> None:
    net = trained(seeded(Fc), SPEC, rows())
    frozen, bias = freeze(net), net.fc.bias
    stored = frozen.fc.bias_integers * frozen.fc.bias_scale
    [found] = rounded(net)
    assert found is not None
    assert torch.equal(found, bias + (stored - bias))
    assert not torch.equal(found, bias)
    [gradient] = torch.autograd.grad(found.sum(), bias)
    assert torch.equal(gradient, torch.ones(2))


@given(st.integers(0, 2**16), st.sampled_from([1, 3, 12]), st.booleans(), st.booleans())
def test_the_loop_has_the_bits_of_the_operators(seed: int, scales: int, has_own: bool, has_gamma: bool) -> None:
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(12, affine=has_gamma, eps=10.0 ** -(seed % 6))
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_()[seed % 12] = [0.0, torch.inf, torch.nan][seed % 3]
    if has_gamma:
        nn.init.normal_(norm.weight).data[seed % 11] = 0.0
        nn.init.normal_(norm.bias)
    of_input, of_weight = Quantizer(Plan(INT8)), Quantizer(Plan(INT8, axis=0), (scales, 2))
    of_input.scale.uniform_(0.0, 0.1)
    of_weight.scale.uniform_(0.0, 0.1)[0] = [0.1, 1e-38][seed % 2]
    own = torch.randn(12) if has_own else None
    products: Any = [(of_input, of_weight, norm, own), (of_input, of_weight, None, torch.randn(12))]
    biases = [bias_of_product(product).detach() for product in products]
    each = [tensors_of(product, bias) for product, bias in zip(products, biases, strict=True)]
    assert bias_kernels.has_loop(each)
    found = bias_kernels.rounded(each, [norm.eps, 0.0])
    expected = rounded_together(products, *biases)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    wrong_size: Any = (biases[0], torch.ones(11), *each[0][2:])
    assert not bias_kernels.has_loop([wrong_size])


def test_nothing_is_rounded_before_both_are_quantized() -> None:
    net = fxc.compress(seeded(ConvBnRelu).eval(), "Q8(w)@1 -> Q8(f)@3", image(), total_steps=4)
    for step in range(4):
        assert (rounded(net) == [None]) == (step < 3)
        net.schedule.step()


WEIGHTS = {"op": "quantize", "target": "weight", "bits": 4, "block": 3, "start": 1}
ACTIVATIONS = {"op": "quantize", "target": "activation", "bits": 8, "start": 1}


@pytest.mark.parametrize("spec", ["Q16(w,f)@1", "Q8(w)@1", {"rules": [WEIGHTS, ACTIVATIONS]}], ids=str)
def test_biases_of_sums_in_float_stay(spec: Any) -> None:
    assert not calls(trained(nn.Linear(9, 2), spec, rows(9), "generic"), RoundedBiases)


def test_batch_norm_keeps_its_bias_its_gradient_and_its_hooks() -> None:
    net, seen = trained(nearly_dead(), SPEC, image()), []
    norm: Any = net.get_submodule("3")
    before = net(image())
    norm.register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(net(image()), before, rtol=0, atol=1e-5)
    bias = norm.bias
    net.train()(image()).square().sum().backward()
    assert seen == [1, 1]
    assert norm.bias is bias
    assert float(bias.grad.abs().sum()) > 0


def test_a_batch_norm_counts_its_batches() -> None:
    net, model = trained(nearly_dead(), SPEC, image()).train(), nearly_dead()
    for _ in range(2):
        net(image())
    assert int(net.get_submodule("3").num_batches_tracked) == 6  # four of them in `trained`
    assert int(model[3].num_batches_tracked) == 0


def test_a_batch_norm_without_parameters_is_shifted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU())
    net = trained(model.eval(), SPEC, image())
    assert is_its_frozen_one(net, image())
    assert len(calls(net, normed)) == 1


def test_a_gamma_of_zero_leaves_the_step_of_the_product() -> None:
    model = nearly_dead()
    with torch.no_grad():
        model[3].weight[2] = 0.0
    net = trained(model.eval(), SPEC, image())
    assert is_its_frozen_one(net, image(), 1e-6)


def test_pruned_biases_are_rounded() -> None:
    rule = {"op": "prune", "target": "weight", "pattern": "channel", "sparsity": 0.5, "start": 1, "end": 1}
    quantize = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 2}
    net = trained(nearly_dead(bias=True).eval(), {"rules": [rule, quantize]}, image())
    assert len(calls(net, normed)) == 1
    assert is_its_frozen_one(net, image())


def test_a_norm_that_is_replaced_acts() -> None:
    net = trained(nearly_dead(), SPEC, image())
    before = net(image())
    other = nn.BatchNorm2d(4)
    other.load_state_dict(net.get_submodule("3").state_dict())
    with torch.no_grad():
        other.bias.add_(1.0)
    net.add_module("3", other.eval())
    assert not torch.allclose(net(image()), before, rtol=0, atol=0.1)
    assert is_its_frozen_one(net, image())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    model = nearly_dead()
    with torch.no_grad():
        model[3].weight[0], model[3].bias[1] = 0.0, 2.0
    net = trained(model.eval(), SPEC, image()).to(dtype)
    assert bool(net(image().to(dtype)).isfinite().all())


def test_statistics_that_overflowed_do_not_reach_training() -> None:
    net = trained(nearly_dead(), SPEC, image()).train()
    norm: Any = net.get_submodule("3")
    norm.running_mean[0] = norm.running_var[0] = torch.inf
    assert bool(net(image()).isfinite().all())


def test_a_bias_that_all_channels_share_is_left_alone() -> None:
    bias = nn.Parameter(torch.ones(1))
    layer = nn.Linear(3, 2, bias=False)
    layer.register_parameter("shared", bias)
    net = trained(Does(lambda m, x: F.linear(x, m.layer.weight, m.layer.shared), layer), SPEC, rows())
    assert bool(net(rows()).isfinite().all())


def test_threads_may_share_a_net() -> None:
    net = trained(nearly_dead(), SPEC, image())
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = net(image())
        found = list(pool.map(lambda _: net(image()), range(100)))
    assert all(torch.equal(y, expected) for y in found)
