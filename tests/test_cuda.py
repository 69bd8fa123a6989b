"""A GPU computes what the CPU does, waits for nobody in a forward, and trains in half precision, compiled and for
export."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from models import Residual
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.grid import Grid
from fxcompress.observer import Observer
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Plan, Quantizer

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # PyTorch's own: of the mode that finds waits, and of the first product on the way back.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode", "ignore:Attempting to run cuBLAS"),
]
STEPS = 20
JOINT = "P0.5(w,f) -> Q8(w,f)"
BOTH = ["weight", "activation"]
SPECS: dict[str, Any] = {
    "notation": JOINT,
    "learned": {"rules": [{"op": "quantize", "target": BOTH, "bits": 8, "scale": "learned"}]},
    "mse": {"rules": [{"op": "quantize", "target": BOTH, "bits": 8, "range": "mse"}]},
    "movement": {"rules": [{"op": "prune", "target": "weight", "sparsity": 0.5, "criterion": "movement"}]},
}
WEIGHTS = {
    "per channel": Plan(Grid(8, True, True, narrow=True), axis=0),
    "per tensor": Plan(Grid(8, True, True)),
    "affine": Plan(Grid(8, False, False), axis=0),
    "blocks": Plan(Grid(4, True, True), block=8),
    "binary": Plan(Grid(1, True, True, binary=True), axis=0),
    "learned": Plan(Grid(4, True, True), axis=0, learned=True),
}


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    assert theirs.device.type == DEVICE
    theirs = theirs.detach().cpu()
    return ours.dtype == theirs.dtype and torch.equal(ours.detach().view(torch.int32), theirs.view(torch.int32))


def called(module: nn.Module, x: Tensor, grad: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """What a copy of the module on a device gives, and the gradient of its input."""
    module = copy.deepcopy(module).to(device)
    leaf = x.to(device, copy=True).requires_grad_()
    out = module(leaf)
    out.backward(grad.to(device))
    assert leaf.grad is not None
    return out, leaf.grad


def assert_same_bits(module: nn.Module, x: Tensor) -> None:
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = called(module, x, grad, "cpu"), called(module, x, grad, DEVICE)
    assert [same_bits(a, b) for a, b in zip(ours, theirs, strict=True)] == [True, True]


def assert_close_in_half(module: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    x, grad = x.to(dtype), torch.ones(x.shape, dtype=dtype)
    for ours, theirs in zip(called(module, x, grad, "cpu"), called(module, x, grad, DEVICE), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs.cpu())


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def weight_quantizer(name: str) -> tuple[Quantizer, Tensor]:
    weight = noise(32, 64)
    quantizer = Quantizer(WEIGHTS[name], (32, 64))
    quantizer.calibrate(weight)
    return quantizer, 1.2 * weight  # some lie outside of the grid


def activation_quantizer() -> Quantizer:
    quantizer = Quantizer(Plan(Grid(8, False, False)))
    quantizer.observing = True
    quantizer(noise(8, 4, 6, 6))
    quantizer.calibrate()
    quantizer.observing = False
    return quantizer


def pruner_of(shape: tuple[int, ...], of_activation: bool) -> Pruner:
    pruner = Pruner(shape) if of_activation else Pruner(shape, shape)
    pruner.prune(0.5, noise(*shape).abs())
    return pruner


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_quantized_to_the_same_bits(name: str) -> None:
    assert_same_bits(*weight_quantizer(name))


def test_activations_are_quantized_to_the_same_bits() -> None:
    assert_same_bits(activation_quantizer(), 1.2 * noise(8, 4, 6, 6))


@pytest.mark.parametrize(("shape", "of_activation"), [((32, 64), False), ((4, 6, 6), True), ((4, 1, 1), True)])
def test_pruned_tensors_have_the_same_bits(shape: tuple[int, ...], of_activation: bool) -> None:
    assert_same_bits(pruner_of(shape, of_activation), noise(8, 4, 6, 6) if of_activation else noise(32, 64))


def test_masked_weights_are_quantized_to_the_same_bits() -> None:
    quantizer, weight = weight_quantizer("per channel")
    assert_same_bits(nn.Sequential(pruner_of((32, 64), False), quantizer), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    assert_close_in_half(*weight_quantizer("per channel"), dtype)
    assert_close_in_half(activation_quantizer(), noise(8, 4, 6, 6), dtype)
    assert_close_in_half(pruner_of((4, 6, 6), True), noise(8, 4, 6, 6), dtype)


@pytest.mark.parametrize("name", WEIGHTS)
def test_scales_are_those_of_the_cpu(name: str) -> None:
    # A tensor divided by a number is multiplied by its inverse on a GPU.
    ours, weight = weight_quantizer(name)
    theirs = Quantizer(WEIGHTS[name], (32, 64)).to(DEVICE)
    theirs.calibrate((weight / 1.2).to(DEVICE))
    torch.testing.assert_close(ours.scale, theirs.scale.cpu(), rtol=1e-5, atol=0)
    assert torch.equal(ours.zero_point, theirs.zero_point.cpu())


def test_an_observer_counts_the_same() -> None:
    ours, theirs = Observer("mse"), Observer("mse").to(DEVICE)
    for scale in (1.0, 3.0, 0.1):
        ours(scale * noise(8, 4, 6, 6))
        theirs((scale * noise(8, 4, 6, 6)).to(DEVICE))
    found = dict(theirs.named_buffers())
    assert [name for name, b in ours.named_buffers() if not torch.equal(b, found[name].cpu())] == []


@contextmanager
def waiting_for_nothing() -> Iterator[None]:
    """While this lasts, to wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(spec: Any = JOINT, dtype: torch.dtype | None = None, scaled: bool = False) -> tuple[Any, list[float]]:
    """A net trained over a whole schedule whose forwards and backwards wait for nothing, and its losses."""
    model, x, y = seeded(Residual).to(DEVICE), noise(8, 3, 8, 8).to(DEVICE), (torch.arange(8) % 5).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    net: Any = fxc.compress(model, spec, x, total_steps=STEPS, optimizer=optimizer)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8, enabled=scaled)
    losses = []
    for _ in range(STEPS):
        with waiting_for_nothing():
            optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
                loss = F.cross_entropy(net(x), y)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    assert not net.schedule.pending()
    return net, torch.stack(losses).tolist()


@pytest.mark.parametrize("name", SPECS)
def test_a_schedule_waits_for_the_gpu_at_events_only(name: str) -> None:
    net, losses = trained(SPECS[name])
    assert all(map(math.isfinite, losses))
    assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {DEVICE}


@pytest.mark.parametrize(("dtype", "scaled"), [(torch.bfloat16, False), (torch.float16, True)], ids=str)
def test_half_precision_trains(dtype: torch.dtype, scaled: bool) -> None:
    net, losses = trained(JOINT, dtype, scaled)
    assert losses[-1] < losses[0]
    assert net.schedule.steps == STEPS
    assert all(bool(q.enabled) and bool(q.scale.isfinite().all()) for q in net.modules() if isinstance(q, Quantizer))


def test_a_net_that_is_trained_on_a_gpu_is_exported_and_goes_to_the_cpu(tmp_path: Path) -> None:
    net, _ = trained()
    net.eval()
    assert fxc.export_onnx(net, tmp_path / "net.onnx").ok
    assert fxc.verify(net, tmp_path / "net.onnx", noise(3, 3, 8, 8).to(DEVICE)).ok
    assert next(net.parameters()).device.type == DEVICE
    fresh = fxc.compress(Residual(), JOINT, noise(8, 3, 8, 8), total_steps=STEPS)
    fresh.load_state_dict(net.state_dict())
    moved = copy.deepcopy(net).cpu()
    assert fresh.schedule.steps == STEPS and not fresh.schedule.pending()
    assert torch.equal(fresh.eval()(noise(3, 3, 8, 8)), moved(noise(3, 3, 8, 8)))


@pytest.mark.filterwarnings("ignore")  # compilers have many
def test_a_compiled_net_is_close_to_eager() -> None:
    torch._dynamo.reset()
    net, x = seeded(Smooth), noise(8, 3, 8, 8).to(DEVICE)
    net = fxc.compress(net.to(DEVICE), JOINT, x, total_steps=4)
    for _ in range(4):
        net(x).sum().backward()
        net.schedule.step()
    assert not net.schedule.pending()
    found = []
    for run in (net, torch.compile(net, fullgraph=True)):
        net.zero_grad()
        out = run(x)
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in net.parameters())])
    for eager, compiled in zip(*found, strict=True):
        # Here and there a value rounds to the next step.
        assert float((eager - compiled).norm() / eager.norm()) < 0.05
    torch._dynamo.reset()


def test_a_step_is_captured_as_a_cuda_graph() -> None:
    x = noise(8, 3, 8, 8).to(DEVICE)
    net = fxc.compress(seeded(Smooth).to(DEVICE), JOINT, x, total_steps=4)
    for _ in range(4):
        net(x).sum().backward()
        net.schedule.step()
    net.zero_grad()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        net(x).square().mean().backward()
    torch.cuda.current_stream().wait_stream(aside)
    net.eval()  # statistics stay from here on
    net.zero_grad()
    net(x).square().mean().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    graph, static = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        net(static).square().mean().backward()
    static.copy_(x)
    graph.replay()
    for p, wanted in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted)


class Smooth(nn.Module):
    """Convolutions and a batch norm, with nothing random."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last((F.relu6(self.second(x)) + x).mean((2, 3)))  # type: ignore[no-any-return]
