"""Shrinking: what is left computes the same, trains on with its optimizer, exports, and is stored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import image, seeded
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import InputError, ScheduleError, SpecError

CHANNELS = {"op": "prune", "target": "weight", "sparsity": 0.5, "pattern": "channel", "start": 1, "ramp": "one-shot"}
INT8 = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 3}


class Block(nn.Module):
    """A residual block behind a stem, with squeeze and excitation, a depthwise convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU())
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.narrow = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.wide(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = F.relu(x + self.narrow(y))
        return self.head(F.max_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


def trained(*rules: Any, model: nn.Module | None = None, steps: int = 5) -> tuple[Any, torch.optim.Optimizer]:
    """A block that trained past all events of these rules, in evaluation mode, and its optimizer."""
    model = seeded(Block) if model is None else model
    assert model is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    net = fxc.compress(model, {"rules": list(rules)}, image(), total_steps=steps, optimizer=optimizer)
    train(net, optimizer, steps)
    return net.eval(), optimizer


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    net.train()
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()


def test_a_shrunk_net_computes_the_same_with_half_the_channels() -> None:
    net, _ = trained(CHANNELS)
    expected = net(image())
    assert fxc.shrink(net) is net
    assert net.stem[0].weight.shape == (4, 3, 3, 3) and net.depthwise[0].weight.shape == (8, 1, 3, 3)
    assert net.squeeze.weight.shape == (2, 8, 1, 1) and net.head.weight.shape == (5, 16)
    assert (
        net.depthwise[0].groups == 8 and net.depthwise[1].num_features == 8 and net.stem[1].running_mean.shape == (4,)
    )
    spread = (expected.max() - expected.min()).detach()
    torch.testing.assert_close(net(image()), expected, rtol=0, atol=float(spread) * 1e-5)


def test_integers_of_a_quantized_net_are_the_same_layer_by_layer() -> None:
    net, _ = trained(CHANNELS, INT8)
    before = fxc.freeze(net)
    expected = before(image())
    fxc.shrink(net)
    after = fxc.freeze(net)
    assert torch.equal(after(image()), expected)
    for name, scale in after.named_buffers():
        if name.endswith("_quantizer_constants.scale"):
            assert torch.equal(scale, before.get_buffer(name))
    assert after.get_buffer("head.weight_integers").any(0).all()  # what is left is used


def test_a_shrunk_net_trains_on_as_the_masked_one_does() -> None:
    net, optimizer = trained(CHANNELS, INT8)
    before = net.stem[0].weight
    state = copy.deepcopy(optimizer.state[before])
    kept = net.compression.stem.get_submodule("0").weight_pruner.mask.flatten()
    fxc.shrink(net)
    assert net.stem[0].weight is before, "an optimizer keeps its parameters"
    assert torch.equal(optimizer.state[before]["exp_avg"], state["exp_avg"][kept])
    train(net, optimizer, 10)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_given_optimizer_is_cut_where_none_is_attached() -> None:
    model = seeded(Block)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    net = fxc.compress(model, {"rules": [CHANNELS]}, image(), total_steps=2)
    for _ in range(2):
        net(image()).sum().backward()
        optimizer.step()
        net.schedule.step()
    fxc.shrink(net, optimizer)
    assert all(s["momentum_buffer"].shape == p.shape for p, s in optimizer.state.items())
    net(image()).sum().backward()
    optimizer.step()


def test_a_shrunk_net_exports_smaller_and_agrees(tmp_path: Path) -> None:
    net, _ = trained(CHANNELS, INT8)
    assert fxc.export_onnx(net, tmp_path / "masked.onnx", image()).ok
    fxc.shrink(net)
    assert fxc.export_onnx(net, tmp_path / "shrunk.onnx", image()).ok
    assert (tmp_path / "shrunk.onnx").stat().st_size < (tmp_path / "masked.onnx").stat().st_size


def test_a_shrunk_net_is_saved_loaded_copied_and_shrunk_again(tmp_path: Path) -> None:
    net, _ = trained(CHANNELS, INT8)
    fxc.shrink(net)
    with torch.no_grad():  # another channel dies
        net.squeeze.weight[0] = net.squeeze.bias[0] = 0
    fxc.shrink(net)
    assert net.squeeze.weight.shape == (1, 8, 1, 1)
    fxc.save(net, tmp_path / "net.fxc")
    loaded = fxc.load(tmp_path / "net.fxc", Block().eval())
    for twin in (loaded, copy.deepcopy(net)):
        assert torch.equal(twin(image()), net(image()))


def test_channels_that_nothing_reads_go_after_unstructured_pruning() -> None:
    net, _ = trained({"op": "prune", "target": "weight", "sparsity": 0.5, "start": 1, "ramp": "one-shot"})
    mask = net.compression.narrow.get_submodule("0").weight_pruner.mask
    mask[:, 3] = net.compression.squeeze.weight_pruner.mask[:, 3] = False
    expected = net(image())
    fxc.shrink(net)
    assert net.narrow[0].weight.shape == (8, 15, 1, 1) and net.wide[0].weight.shape == (15, 8, 1, 1)
    torch.testing.assert_close(net(image()), expected)


def test_a_dead_channel_that_still_emits_stays() -> None:
    net, _ = trained({"op": "prune", "target": "weight", "sparsity": 0.1, "start": 1, "ramp": "one-shot"})
    net.wide[1].bias.data.fill_(1.0)
    net.compression.wide.get_submodule("0").weight_pruner.mask[3] = False
    expected = net(image())
    fxc.shrink(net)
    assert net.wide[0].weight.shape == (16, 8, 1, 1)
    torch.testing.assert_close(net(image()), expected)


def test_no_layer_dies() -> None:
    net, _ = trained({**CHANNELS, "sparsity": 1.0})
    fxc.shrink(net)
    assert net.stem[0].weight.shape == (1, 3, 3, 3) and net.squeeze.weight.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(("multiple", "left"), [(1, 6), (4, 8), (8, 8)])
def test_channels_are_left_in_multiples(multiple: int, left: int) -> None:
    net, _ = trained({**CHANNELS, "sparsity": 0.625, "match": {"name": ["wide.*", "depthwise.*", "excite"]}})
    expected = net(image())
    fxc.shrink(net, multiple=multiple)
    assert len(net.wide[0].weight) == left
    torch.testing.assert_close(net(image()), expected)


class Table(nn.Module):
    """Adds rows of a table, read by an index, as relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.table = nn.Parameter(torch.randn(5, 1))
        self.register_buffer("index", torch.arange(16).view(4, 4) % 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table[self.index.view(-1)].view(4, 4)  # type: ignore[operator]
        return self.b(F.relu(self.a(x))) + rows  # type: ignore[no-any-return]


def test_tables_read_by_an_index_stay_readable() -> None:
    net, _ = trained(CHANNELS, model=seeded(Table))
    expected = net(image())
    fxc.shrink(net)
    torch.testing.assert_close(net(image()), expected)


def test_heads_of_attention_go() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(5, 24), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, 2).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8))  # type: ignore[no-any-return]

    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    net = fxc.compress(Attention().eval(), {"rules": [CHANNELS]}, x, total_steps=1)
    net.schedule.step()
    expected = net(x)
    fxc.shrink(net)
    assert net.qkv.weight.shape == (12, 5) and net.proj.weight.shape == (5, 4)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("match", "why"),
    [
        ({"name": "head"}, r"can prune no channels: the channels of all weights it selects are outputs of the model"),
        ({"name": "stem.0"}, r"the channels of 'stem.0.weight' go with those of 'narrow.0.weight', which it does not"),
    ],
)
def test_refuses_rules_that_can_prune_no_channels(match: dict[str, str], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        fxc.compress(seeded(Block), {"rules": [{**CHANNELS, "match": match}]}, image(), total_steps=4)


@pytest.mark.parametrize(
    "call",
    [lambda net: fxc.shrink(nn.Linear(2, 2)), lambda net: fxc.shrink(net, multiple=0)],  # type: ignore[arg-type]
    ids=["no net", "no multiple"],
)
def test_refuses_what_it_cannot_take(call: Callable[[Any], Any]) -> None:
    net, _ = trained(CHANNELS)
    with pytest.raises(InputError):
        call(net)


def test_masked_channels_are_exactly_zero_and_counted() -> None:
    net, _ = trained(CHANNELS)
    masks = {k.removesuffix(".mask"): m for k, m in net.state_dict().items() if k.endswith(".mask")}
    assert masks["compression.stem.0.weight_pruner"].shape == (8, 1, 1, 1)
    assert int((~masks["compression.stem.0.weight_pruner"]).sum()) == 4
    assert torch.equal(
        masks["compression.stem.0.weight_pruner"].flatten(), masks["compression.narrow.0.weight_pruner"].flatten()
    )
    assert "compression.head.weight_pruner" not in masks


def test_refuses_while_channels_are_still_to_be_pruned() -> None:
    optimizer = torch.optim.SGD((model := seeded(Block)).parameters(), lr=0.01)
    rule = {**CHANNELS, "ramp": "linear", "steps": 2, "end": 4}
    net = fxc.compress(model, {"rules": [rule]}, image(), total_steps=5, optimizer=optimizer)
    train(net, optimizer, 2)
    with pytest.raises(
        ScheduleError, match=r"events on channels have not acted, the last after step 4 .*; shrink once"
    ):
        fxc.shrink(net)
    train(net, optimizer, 3)
    fxc.shrink(net)
    assert len(net.stem[0].weight) == 4
