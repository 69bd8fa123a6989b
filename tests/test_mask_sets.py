"""Several masks of one network: kept, switched, stored, exported, and what shrinks with them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import InputError
from fxcompress.pruner import Pruner

RULE = {"op": "prune", "target": "weight", "sparsity": 0.5, "criterion": "random", "start": 1, "ramp": "one-shot"}
INT8 = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 3}


def rows() -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))


def masks_of(net: nn.Module) -> list[Tensor]:
    return [m.mask.clone() for m in net.modules() if isinstance(m, Pruner)]


def with_two(**more: object) -> tuple[fxc.CompressedModule, torch.optim.Optimizer]:
    """A net with masks `first` of half, and `second` of the other half of the entries."""
    net = fxc.compress(model(), {"rules": [{**RULE, **more}, INT8]}, rows(), total_steps=4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
    net.schedule.attach(optimizer)
    train(net, optimizer, 4)
    fxc.keep_masks(net, "first")
    for pruner in (m for m in net.modules() if isinstance(m, Pruner)):
        pruner.keep(~pruner.mask)
    fxc.keep_masks(net, "second")
    return net, optimizer


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        net(rows()).square().mean().backward()
        optimizer.step()
    net.eval()


def test_masks_are_switched_and_none_is_the_whole_network() -> None:
    net, optimizer = with_two()
    second = masks_of(net)
    fxc.use_masks(net, "first")
    assert all(torch.equal(a, ~b) for a, b in zip(masks_of(net), second, strict=True))
    first = net(rows())
    train(net, optimizer, 3)
    fxc.use_masks(net, "second")
    assert not torch.equal(net(rows()), first)
    assert all(map(torch.equal, masks_of(net), second))
    fxc.use_masks(net, None)
    assert all(mask.all() for mask in masks_of(net))
    assert fxc.kept_masks(net) == ("first", "second")


def test_training_one_leaves_the_weights_that_only_the_other_has() -> None:
    net, _ = with_two()
    fxc.use_masks(net, "first")
    pruner = next(m for m in net.modules() if isinstance(m, Pruner))
    weight = net.get_parameter("0.weight")
    before = weight.detach().clone()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), 3)
    assert torch.equal(weight[~pruner.mask], before[~pruner.mask])
    assert not torch.equal(weight[pruner.mask], before[pruner.mask])


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_is_exported(name: str, tmp_path: Path) -> None:
    net, _ = with_two()
    fxc.use_masks(net, name)
    assert fxc.export_onnx(net, tmp_path / "net.onnx", rows()).ok
    masks = dict(zip(("0", "2"), masks_of(net), strict=True))
    frozen = fxc.freeze(net)
    stored = {n: b for n, b in frozen.named_buffers() if b.dtype == torch.int8}
    for path, mask in masks.items():
        [integers] = [b for b in stored.values() if b.shape == mask.shape]
        assert not integers[~mask].any(), path


def test_state_copies_and_files_have_them(tmp_path: Path) -> None:
    net, _ = with_two()
    fresh = fxc.compress(model(), net.spec, rows(), total_steps=4)
    fxc.keep_masks(fresh, "other")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    fxc.save(net, tmp_path / "net.fxc")
    for twin in (fresh.eval(), copy.deepcopy(net), fxc.load(tmp_path / "net.fxc", model()).eval()):
        assert fxc.kept_masks(twin) == ("first", "second")
        for name in ("first", "second"):
            fxc.use_masks(twin, name)
            fxc.use_masks(net, name)
            assert torch.equal(twin(rows()), net(rows()))


def test_shrink_removes_what_no_mask_keeps() -> None:
    net, _ = with_two(pattern="channel", sparsity=0.75, criterion="magnitude")
    pruners = [m for m in net.modules() if isinstance(m, Pruner)]
    for pruner in pruners:
        pruner.keep(pruner.get_buffer("kept_as_first"))
    fxc.keep_masks(net, "second")
    net_kept = int(pruners[0].mask.any(-1).sum()) if pruners[0].mask.ndim > 1 else int(pruners[0].mask.sum())
    for pruner in pruners:  # the last channel too
        mask = pruner.mask.clone()
        if mask.numel() == 16 or mask.shape[0] == 16:
            mask[:] = False
            mask[:3] = True
        pruner.keep(mask)
    kept = int((pruners[0].ever_kept.flatten(1).any(1) if pruners[0].mask.ndim > 1 else pruners[0].ever_kept).sum())
    assert kept > net_kept
    outputs = {}
    for name in ("first", "second"):
        fxc.use_masks(net, name)
        outputs[name] = net(rows())
    fxc.keep_masks(net, "third")
    fxc.shrink(net)
    assert net.get_parameter("0.weight").shape[0] == 4
    for name, expected in outputs.items():
        fxc.use_masks(net, name)
        torch.testing.assert_close(net(rows()), expected)


def test_restart_lets_all_events_act_anew() -> None:
    net, optimizer = with_two()
    net.schedule.restart()
    assert net.schedule.steps == 0 and all(mask.all() for mask in masks_of(net))
    plain = copy.deepcopy(net.train())
    assert torch.equal(net(rows()), nn.Sequential(*[net.get_submodule(str(i)) for i in range(3)])(rows()))
    train(net, optimizer, 1)
    assert all(int((~mask).sum()) == mask.numel() // 2 for mask in masks_of(net))
    train(net, optimizer, 3)
    assert not net.schedule.pending()
    assert len(plain.schedule.pending()) == len(net.schedule.events)


def test_wrong_names_are_refused() -> None:
    net, _ = with_two()
    with pytest.raises(InputError, match=r"no masks 'frist'; did you mean 'first'\? kept are: first, second"):
        fxc.use_masks(net, "frist")
    with pytest.raises(InputError, match=r"'a\.b' cannot name masks"):
        fxc.keep_masks(net, "a.b")
    with pytest.raises(InputError, match="the net has no masks"):
        fxc.keep_masks(fxc.compress(model(), "Q8(w)@0", rows(), total_steps=1), "a")
