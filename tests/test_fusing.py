"""Rows of a graph as one call: the same as one after the other."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import seeded, trained
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import fxcompress as fxc
from fxcompress.errors import InputError
from fxcompress.fusing import fused
from fxcompress.grid import Grid
from fxcompress.joint_calls import QuantizedActivation, Roundings
from fxcompress.pruner import Pruner
from fxcompress.quantized_product import QuantizedProduct
from fxcompress.quantizer import Plan, Quantizer
from fxcompress.rounding import IDLE

SPEC = "P0.5(w,f) -> Q8(w,f)"


@pytest.mark.parametrize("what", ["scale", "zero_point", "mask"])
def test_what_is_written_from_outside_counts_at_once(what: str) -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    net(x)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(getattr(module, what, None), Tensor) and module.of_activation:
                getattr(module, what).copy_(getattr(module, what) * (2 if what == "scale" else 0))
    assert torch.equal(net(x), apart(net)(x))


def test_a_frozen_weight_gets_no_gradient_and_the_others_do() -> None:
    net = compressed()
    first = next(iter(net.parameters())).requires_grad_(False)
    first.grad = None
    net.zero_grad()
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    assert first.grad is None
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_what_writes_in_place_and_is_seen_is_called_alone() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.last = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = self.relu(y)
            return self.last(z) + y.sum()  # of what the function left

    torch.manual_seed(0)
    net = on(fxc.compress(Seen(), SPEC, torch.randn(4, 3, 8, 8), total_steps=10))
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net(x), apart(net)(x))


def on(net: Any) -> Any:
    for _ in range(10):
        net(torch.randn(4, 3, 8, 8)).sum().backward()
        net.schedule.step()
    return net


def compressed(spec: str = SPEC) -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    return on(fxc.compress(nn.Sequential(*layers), spec, torch.randn(4, 3, 8, 8), total_steps=10))


def apart(net: Any) -> Any:
    """The same net with its pruners and quantizers called in turn: somebody looks at each."""
    twin = copy.deepcopy(net)
    for module in twin.modules():
        if isinstance(module, (Pruner, Quantizer)):
            module.register_forward_hook(lambda *_: None)
    return twin


def test_a_net_computes_what_it_computes_one_after_the_other() -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    twin = apart(net)
    run = [type(n.target) for n in fused(net.graph, net).nodes]
    assert run.count(QuantizedProduct) == 3
    assert run.count(QuantizedActivation) == 2  # the input's, and that of the sum that nobody multiplies
    ys = [one(x) for one in (net, twin)]
    assert torch.equal(*ys)
    for one, y in zip((net, twin), ys, strict=True):
        one.zero_grad()
        (y**2).sum().backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


PRODUCTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "linear of tokens": (nn.Linear(5, 4, bias=False), (3, 2, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 7)),
    "conv2d": (nn.Conv2d(4, 6, (3, 1), stride=(2, 1), dilation=2, bias=False), (2, 4, 9, 6)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 5)),
    "of one image": (nn.Conv2d(4, 6, 3), (4, 5, 5)),
}


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("spec", [SPEC, "Q8(w)", "P0.5(w) -> Q4(w,f)"])
def test_a_product_computes_what_its_parts_do(kind: str, layout: Any, spec: str) -> None:
    """A square before it makes its input one that may be overwritten, and gives second derivatives something to find."""
    product, shape = PRODUCTS[kind]
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = copy.deepcopy(product)

        def forward(self, x: Tensor) -> Tensor:
            return self.product(torch.relu(x * x + x)) ** 2

    x = torch.randn(shape)
    net = fxc.compress(Net(), spec, x, total_steps=10)
    for _ in range(10):
        net(torch.randn(shape)).sum().backward()
        net.schedule.step()
    if len(shape) == 4:
        net, x = net.to(memory_format=layout), x.contiguous(memory_format=layout)
    grads, ys = [], []
    for one in (net, apart(net)):
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *one.parameters()]
        y = one(leaf)
        first = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
        taped = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in taped), inputs, allow_unused=True)
        ys.append(y)
        grads.append([*first, *(g for g in second if g is not None)])
        with torch.no_grad():
            assert torch.equal(one(x), y)
    assert torch.equal(*ys)
    assert len(grads[0]) == len(grads[1])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


class Asks(nn.Module):
    """A product of a norm's or a function's output, and a size of that."""

    def __init__(self, ask: Any, function: Any = None) -> None:
        super().__init__()
        self.norm, self.linear, self.size, self.function = nn.LayerNorm(5), nn.Linear(5, 4), nn.ELU(), function
        self.ask = ask

    def forward(self, x: Tensor, dim: float = 2.0) -> Any:
        y = self.norm(x) if self.function is None else self.function(self.norm(x))
        return self.ask(self, y), self.linear(y) * dim


def calls(net: Any, kind: type) -> list[Any]:
    return [n.target for n in fused(net.graph, net).nodes if isinstance(n.target, kind)]


@pytest.mark.parametrize("function", [None, nn.ReLU(), nn.ReLU(inplace=True)])
@pytest.mark.parametrize("ask", [lambda m, y: y.shape[0] + y.shape[1], lambda m, y: y.size(0) + y.ndim])
def test_who_asks_for_a_size_reads_no_values(ask: Any, function: Any) -> None:
    net = trained(seeded(lambda: Asks(ask, function)), "Q8(w,f)@1", torch.randn(3, 5))
    [product] = calls(net, QuantizedProduct)
    assert product.input is not None
    x = torch.randn(3, 5)
    (size, y), (expected, z) = net(x), torch.fx.Interpreter(net.view(net.graph)).run(x)
    assert size == expected
    assert torch.equal(y, z)


def reshaped_by_an_alias(model: Any, y: Tensor) -> Any:
    y.contiguous().t_()
    return y.shape[0] + model.linear(y.t_())


def reshaped(model: Any, y: Tensor) -> Any:
    z = y.unsqueeze_(1)
    return z.dim() + y.dim() + y.shape[2]


@pytest.mark.parametrize("function", [None, nn.ReLU()])
@pytest.mark.parametrize(
    "ask", [lambda m, y: m.size(y), reshaped, reshaped_by_an_alias], ids=["named so", "new", "alias"]
)
def test_what_is_no_question_for_a_size_stays(ask: Any, function: Any) -> None:
    net, x = trained(seeded(lambda: Asks(ask, function)), "Q8(w,f)@1", torch.randn(3, 5)), torch.randn(3, 5)
    apart_by_nodes = torch.fx.Interpreter(net.view(net.graph)).run(x)
    for found, expected in zip(net(x), apart_by_nodes, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_hook_that_is_gone_leaves_no_trace() -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    [roundings] = calls(net, Roundings)
    expected = [how.overwrites for how in roundings()]
    assert any(expected)
    assert roundings() is roundings()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    hook = norm.register_forward_hook(lambda *_: None)
    assert [how.overwrites for how in roundings()] != expected
    hook.remove()
    assert [how.overwrites for how in roundings()] == expected
    net(x)


def test_a_switch_is_seen_at_the_next_forward() -> None:
    net = compressed()
    [roundings] = calls(net, Roundings)
    for module in net.modules():
        if isinstance(module, (Pruner, Quantizer)):
            before = roundings()
            module.release()
            assert roundings() is not before
    assert all(how is IDLE for how in roundings())


def with_gaps(t: Tensor) -> Tensor:
    """Bytes as part of a larger tensor."""
    if t.dtype is not torch.uint8:
        return t
    larger = t.new_zeros(*t.shape[:-1], t.shape[-1] + 3)
    larger[..., : t.shape[-1]] = t
    return larger[..., : t.shape[-1]]


def test_what_a_product_yields_may_be_written_to() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y *= 2.0
            return y

    rule = {"op": "quantize", "target": "weight", "bits": 8, "start": 1}
    net = trained(seeded(Net), {"rules": [rule]}, torch.randn(2, 3, 5)).train()
    net(torch.randn(2, 3, 5)).sum().backward()
    assert net.linear.weight.grad is not None


def test_saved_tensors_may_come_back_in_another_layout() -> None:
    net, grads = compressed().eval().to(memory_format=torch.channels_last), []
    x = torch.randn(4, 3, 8, 8)
    for pack in (lambda t: t, lambda t: t.detach().contiguous().clone(), with_gaps):
        net.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = net(x)
        y.square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-3)


def test_a_weight_that_changes_between_the_ways_is_an_error() -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    y = net(x).sum()
    with torch.no_grad():
        next(net.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_what_a_hook_saw_stays_as_it_was() -> None:
    """A quantizer takes the memory of a batch norm's output, but not where somebody may have kept that."""
    net, x, seen = compressed(), torch.randn(4, 3, 8, 8), []
    expected = net(x)
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    torch.testing.assert_close(net(x), expected)
    [(kept, copied)] = seen
    assert torch.equal(kept, copied)


def test_one_net_in_several_threads() -> None:
    """Each call rounds its weights in memory that no other has."""
    net = compressed().eval()
    xs = [torch.randn(64, 3, 8, 8) for _ in range(8)]
    with torch.no_grad():
        expected = [net(x) for x in xs]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                assert all(map(torch.equal, pool.map(net, xs), expected))


def test_whoever_looks_at_a_module_sees_what_it_is_called_on() -> None:
    net, seen = compressed(), []
    quantizer = next(m for m in net.modules() if isinstance(m, Quantizer) and not m.of_activation)
    pruner = next(m for m in net.modules() if isinstance(m, Pruner) and not m.of_activation)
    quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.randn(4, 3, 8, 8))
    assert torch.equal(seen[0] == 0, ~pruner.mask)


def test_a_pruner_that_others_read_is_called_alone() -> None:
    root = nn.Module()
    root.pruner = Pruner((2,), (2,))
    root.quantizer = Quantizer(Plan(Grid(8, True, True)), (2,))
    graph = torch.fx.Graph()
    pruned = graph.call_module("pruner", (graph.placeholder("x"),))
    quantized = graph.call_module("quantizer", (pruned,))
    graph.output((pruned, quantized))
    assert str(fused(graph, root)) == str(graph)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_either_way(dtype: torch.dtype) -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype):
        assert torch.equal(net(x), apart(net)(x))


def test_channels_last_stays() -> None:
    net = compressed().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    assert net(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), net(x.contiguous()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_recompute_the_same(reentrant: bool) -> None:
    net = compressed().eval()
    grads = []
    for call in (net, lambda x: checkpoint(net, x, use_reentrant=reentrant)):
        net.zero_grad()
        (call(torch.ones(4, 3, 8, 8, requires_grad=True)) ** 2).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_in_place_on_a_quantizer_that_is_off_is_seen_by_who_reads_its_input() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return self.relu(y.mul(1.5)) + y

    torch.manual_seed(0)
    net = on(fxc.compress(Seen(), SPEC, torch.randn(4, 3, 8, 8), total_steps=10))
    for name, module in net.named_modules():
        if isinstance(module, Quantizer) and "mul" in name:
            module.release()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net(x), apart(net)(x))


def test_tensors_that_count_no_changes_compute_the_same() -> None:
    net, x = compressed().eval(), torch.randn(4, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_tensors_without_data_leave_nothing_behind() -> None:
    net, x = compressed().eval(), torch.randn(4, 3, 8, 8)
    expected = apart(net)(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(x)).shape == expected.shape
    fake = {name: mode.from_tensor(t) for name, t in (*net.named_parameters(), *net.named_buffers())}
    assert torch.func.functional_call(net, fake, (mode.from_tensor(x),)).shape == expected.shape
    scales = {name: t for name, t in fake.items() if name.endswith("scale")}
    with torch.no_grad():
        assert torch.func.functional_call(net, scales, (x,)).shape == expected.shape
    assert torch.equal(net(x), expected)


def test_data_parallel_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="train with DistributedDataParallel"):
        compressed()._replicate_for_data_parallel()


FEWER = """
import torch
from fxcompress import cpu_kernels
from fxcompress.grid import Grid, fake_quantize
torch.set_num_threads(4)
x = torch.randn(2**18)
y = fake_quantize(x, torch.tensor(0.1), 0, Grid(8, True, True))
print(torch.equal(y, (x / 0.1).round().clamp(-128, 127) * torch.tensor(0.1)))
"""


@pytest.mark.parametrize(
    "limits", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}, {"OMP_NUM_THREADS": "3"}], ids=str
)
def test_all_is_rounded_though_fewer_threads_come(limits: dict[str, str]) -> None:
    environment = os.environ | limits
    done = subprocess.run([sys.executable, "-c", FEWER], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


NOWHERE = """
from numba.core import caching
for kind in (getattr(caching, "CacheImpl", None) or caching._CacheImpl).__subclasses__():
    kind._locator_classes = []
"""


def test_loops_need_no_place_for_a_cache() -> None:
    """Neither the package's folder nor the user's own can be written to: what is compiled is not kept."""
    done = subprocess.run([sys.executable, "-c", NOWHERE + FEWER], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


class Dense(nn.Module):
    """Convolution, norm and SiLU in place, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.silu = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.silu(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


def dense() -> Any:
    torch.manual_seed(0)
    return on(fxc.compress(Dense(), SPEC, torch.randn(4, 3, 8, 8), total_steps=10))


def gradients(net: Any, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def test_the_way_back_under_autocast_is_that_of_the_way_there() -> None:
    net, x = dense(), torch.randn(4, 3, 8, 8)
    expected = gradients(net, x)
    net.zero_grad()
    loss = net(x).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    for p, wanted in zip(net.parameters(), expected, strict=True):
        assert torch.equal(p.grad, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_type_is_not_that_of_memory(dtype: torch.dtype) -> None:
    net, x = dense(), torch.randn(4, 3, 8, 8)
    expected = gradients(copy.deepcopy(net), x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = gradients(net, x)
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))


def test_memory_that_somebody_else_sees_in_place_is_not_written_over() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.first(x)
            return self.last(torch.nn.functional.silu(a, inplace=True)), a

    x = torch.randn(4, 3, 8, 8)
    net = fxc.compress(Seen(), "Q4(w,f)", x, total_steps=10)
    for _ in range(10):
        net(x)[0].sum().backward()
        net.schedule.step()
    assert all(map(torch.equal, net(x), apart(net)(x)))


def test_a_hook_on_a_weight_is_called_once() -> None:
    net, x, called = dense(), torch.randn(4, 3, 8, 8), []
    net.conv.weight.register_hook(lambda g: called.append(g))
    torch.autograd.grad(net(x).square().sum(), list(net.parameters()), create_graph=True)
    assert len(called) == 1


def test_exchanged_memory_of_scales_counts_at_once() -> None:
    net, x = dense(), torch.randn(4, 3, 8, 8)
    gradients(net, x)
    for module in net.modules():
        if isinstance(module, Quantizer):
            module.scale.data = module.scale * 2
            module.zero_point.data = module.zero_point.clone()
    assert torch.equal(net(x), apart(net)(x))


def test_a_state_may_be_loaded_by_exchanging_tensors() -> None:
    net, x = compressed(), torch.randn(4, 3, 8, 8)
    before = net.eval()(x).detach()
    state = {name: t.clone() for name, t in net.state_dict().items()}
    for name, t in state.items():
        if name.endswith("scale"):
            t.mul_(2)
    other = copy.deepcopy(net)
    other.load_state_dict(state)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.load_state_dict(state)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert torch.equal(net(x), other(x))
    assert not torch.equal(net(x), before)
