"""What rules that prune do in training: criteria, patterns, scopes, ramps, and that what is pruned stays so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import pytest
import torch
from helpers import image, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import InputError, ScheduleError, SpecError
from fxcompress.masks import block_scores, kept_of_all, kept_of_each, may_go, spread_blocks, zeros_in
from fxcompress.patterns import Blocks, Grouped

BASE = {"op": "prune", "target": "weight", "sparsity": 0.5, "start": 2, "ramp": "one-shot"}
INT8 = {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "start": 6}


class Two(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.bn(self.a(x)))).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def compressed(*rules: Any, steps: int = 10, example: Tensor | None = None) -> tuple[Any, torch.optim.Optimizer]:
    model = seeded(Two)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    x = image() if example is None else example
    return fxc.compress(model, {"rules": list(rules)}, x, total_steps=steps, optimizer=optimizer), optimizer


def train(net: Any, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    net.train()
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 3, 4, 4, generator=generator)
        optimizer.zero_grad()
        (net(x) - torch.randn(4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def pruner(net: Any, path: str) -> Any:
    return net.get_submodule(f"compression.{path}_pruner")


def zeros(net: Any, path: str) -> int:
    return int((~pruner(net, path).mask).sum())


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 0.9), st.sampled_from([0.0, 0.01, 0.1]),
)  # fmt: skip
def test_a_global_scope_prunes_the_least_of_all_and_no_layer_dies(values: Any, sparsity: float, floor: float) -> None:
    scores = [torch.tensor(v, dtype=torch.float32) for v in values]
    n = sum(map(len, values))
    if zeros_in(sparsity, n) > may_go([len(v) for v in values], floor):
        with pytest.raises(ValueError, match="cannot go where a share"):
            kept_of_all(scores, sparsity, floor)
        return
    masks = kept_of_all(scores, sparsity, floor)
    assert sum(int((~m).sum()) for m in masks) == zeros_in(sparsity, n)
    assert all(bool(m.any()) for m in masks)


@given(st.integers(1, 3), st.sampled_from([(1, 4), (2, 4), (4, 8)]), st.integers(0, 2**16), st.sampled_from([0, 1]))
def test_of_each_group_exactly_so_many_stay(groups: int, pattern: tuple[int, int], seed: int, axis: int) -> None:
    kept, of_each = pattern
    shape = [3, 3, 2]
    shape[axis] = groups * of_each
    scores = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = kept_of_each(scores, Grouped(kept, of_each), axis)
    by_group = mask.movedim(axis, -1).unflatten(-1, (-1, of_each))
    assert bool((by_group.sum(-1) == kept).all())
    value = torch.where(mask, scores, torch.inf).movedim(axis, -1).unflatten(-1, (-1, of_each)).amin(-1)
    gone = torch.where(mask, -1.0, scores).movedim(axis, -1).unflatten(-1, (-1, of_each)).amax(-1)
    assert bool((gone <= value).all())


def test_blocks_go_as_a_whole() -> None:
    scores = torch.arange(24.0).view(4, 6)
    sums = block_scores(scores, Blocks(2, 3), (0, 1))
    assert sums.tolist() == [[24.0, 42.0], [96.0, 114.0]]
    mask = spread_blocks(sums > 50, Blocks(2, 3), (0, 1))
    assert mask.tolist() == [[False] * 6] * 2 + [[True] * 6] * 2


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "4x1", "2x2", "unstructured"])
def test_patterns_hold_in_training(pattern: str) -> None:
    rule = {**BASE, "pattern": pattern, "match": {"name": "b"}}
    net, optimizer = compressed(rule)
    train(net, optimizer, 0, 10)
    mask = pruner(net, "b.weight").mask
    assert zeros(net, "b.weight") == mask.numel() // 2
    grouped, blocks = Grouped.of(pattern), Blocks.of(pattern)
    if grouped:
        assert bool((mask.movedim(1, -1).unflatten(-1, (-1, grouped.of_each)).sum(-1) == grouped.kept).all())
    if blocks:
        assert torch.equal(spread_blocks(block_scores(mask.float(), blocks, (0, 1)) > 0, blocks, (0, 1)), mask)


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "movement", "random", "test_prune_rules:distance"])
@pytest.mark.parametrize("pattern", ["unstructured", "channel"])
def test_criteria_choose_and_resume_to_the_bit(criterion: str, pattern: str) -> None:
    rule = {**BASE, "criterion": criterion, "pattern": pattern, "ramp": "linear", "steps": 3, "end": 8}
    whole, optimizer = compressed(rule, INT8)
    train(whole, optimizer, 0, 10)
    assert zeros(whole, "a.weight") == whole.a.weight.numel() // 2 if pattern != "channel" else 4
    for kill in (1, 3, 6):
        first, one = compressed(rule, INT8)
        train(first, one, 0, kill)
        state, momentum = copy.deepcopy(first.state_dict()), copy.deepcopy(one.state_dict())
        again, other = compressed(rule, INT8)
        again.load_state_dict(state)
        other.load_state_dict(momentum)
        train(again, other, kill, 10)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items() if "_extra" not in k)


def distance(weight: Tensor) -> Tensor:
    """A criterion of a user's own: how far from the mean."""
    return (weight - weight.mean()).abs()


def test_a_users_function_is_used_and_must_give_scores() -> None:
    net, optimizer = compressed({**BASE, "criterion": lambda w: -w.abs()})
    train(net, optimizer, 0, 3)
    weight, mask = net.a.weight.detach(), pruner(net, "a.weight").mask
    assert float(weight[mask].abs().mean()) < float(weight[~mask].abs().mean())
    net, optimizer = compressed({**BASE, "criterion": lambda w: w.sum()})
    with pytest.raises(TypeError, match=r"criterion .* gave \(\) for a tensor of shape \(8, 3, 3, 3\)"):
        train(net, optimizer, 0, 3)


def test_sensitivity_at_initialization_is_the_gradient_of_the_first_batch() -> None:
    net, optimizer = compressed({**BASE, "criterion": "gradient", "start": 1})
    model = copy.deepcopy(net)
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = (model(x) - torch.randn(4, 4, generator=_after_input())).square().mean()
    loss.backward()
    expected = (model.a.weight.grad * model.a.weight).abs().detach()
    train(net, optimizer, 0, 1)
    mask = pruner(net, "a.weight").mask
    assert float(expected[~mask].max()) <= float(expected[mask].min())


def _after_input() -> torch.Generator:
    generator = torch.Generator().manual_seed(0)
    torch.randn(4, 3, 4, 4, generator=generator)
    return generator


def test_a_gradient_that_nobody_computed_is_told() -> None:
    net = fxc.compress(seeded(Two), {"rules": [{**BASE, "criterion": "movement"}]}, image(), total_steps=4)
    with pytest.raises(ScheduleError, match="by its gradient, and none was seen; call backward"):
        for _ in range(3):
            net(image())
            net.schedule.step()


@pytest.mark.parametrize(("gradient", "expected"), [("masked", False), ("dense", True)])
def test_masked_weights_get_their_gradient_or_not_while_the_mask_may_change(gradient: str, expected: bool) -> None:
    rule = {**BASE, "gradient": gradient, "ramp": "linear", "steps": 2, "end": 6}
    net, optimizer = compressed(rule)
    train(net, optimizer, 0, 3)
    mask = pruner(net, "a.weight").mask.clone()
    optimizer.zero_grad()
    net(image()).square().sum().backward()
    assert bool(net.a.weight.grad[~mask].any()) is expected
    train(net, optimizer, 3, 8)
    optimizer.zero_grad()
    net(image()).square().sum().backward()
    assert not net.a.weight.grad[~pruner(net, "a.weight").mask].any(), "a frozen mask lets no gradient through"


@pytest.mark.parametrize(
    ("ramp", "levels"),
    [({"ramp": "linear"}, [0.125, 0.25, 0.375, 0.5]), ({"ramp": "polynomial", "power": 2}, [0.21875, 0.375, 0.46875, 0.5])],
)  # fmt: skip
def test_ramps_climb_as_they_say(ramp: Any, levels: list[float]) -> None:
    net, optimizer = compressed({**BASE, "interval": 2, **ramp})
    seen = []
    for step in range(10):
        train(net, optimizer, step, step + 1)
        seen.append(1 - float(pruner(net, "b.weight").mask.float().mean()))
    n = net.b.weight.numel()
    assert seen[1::2][:4] == pytest.approx([zeros_in(level, n) / n for level in levels], abs=1e-6)


def test_a_mask_is_refreshed_until_and_then_frozen() -> None:
    net, optimizer = compressed({**BASE, "interval": 2, "until": 6})
    actions = [(e.step, e.action, e.is_last) for e in net.schedule.events if e.tensor == "a.weight"]
    assert actions == [(2, "prune", False), (4, "refresh", False), (6, "refresh", True)]
    train(net, optimizer, 0, 5)
    assert not pruner(net, "a.weight").is_frozen
    train(net, optimizer, 5, 6)
    assert pruner(net, "a.weight").is_frozen


def test_front_to_back_prunes_one_after_another() -> None:
    net, _ = compressed({**BASE, "target": ["weight"], "start": 2, "end": 8, "sequence": "front-to-back"})
    assert [(e.step, e.tensor) for e in net.schedule.events] == [(2, "a.weight"), (5, "b.weight"), (8, "head.weight")]


def test_a_released_mask_is_gone_and_dense_training_goes_on(tmp_path: Path) -> None:
    net, optimizer = compressed({**BASE, "release": 5}, INT8)
    train(net, optimizer, 0, 4)
    assert zeros(net, "a.weight") == net.a.weight.numel() // 2
    train(net, optimizer, 4, 10)
    assert zeros(net, "a.weight") == 0
    assert {r.name: r.sparsity for r in fxc.report(net).rows}["a.weight"] == 0
    assert fxc.export_onnx(net.eval(), tmp_path / "net.onnx", image()).ok


@pytest.mark.parametrize("rewind", [0, 1])
def test_weights_go_back_to_an_earlier_step(rewind: int) -> None:
    net, optimizer = compressed({**BASE, "start": 4, "rewind": rewind})
    earlier = net.a.weight.detach().clone()
    if rewind:
        train(net, optimizer, 0, 1)
        earlier = net.a.weight.detach().clone()
    train(net, optimizer, rewind, 4)
    assert torch.equal(net.a.weight, earlier)


def test_zeros_of_a_sparse_checkpoint_stay() -> None:
    model = seeded(Two)
    with torch.no_grad():
        model.a.weight[:, 1] = 0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rule = {"op": "prune", "target": "weight", "criterion": "zeros", "start": 0}
    net = fxc.compress(model, {"rules": [rule]}, image(), total_steps=4, optimizer=optimizer)
    train(net, optimizer, 0, 4)
    assert zeros(net, "a.weight") == 8 * 9 and zeros(net, "b.weight") == 0
    assert not (net.a.weight * pruner(net, "a.weight").mask)[:, 1].any()


def test_a_global_scope_leaves_some_of_every_layer() -> None:
    net, optimizer = compressed({**BASE, "scope": "global", "sparsity": 0.8})
    net.a.weight.data.mul_(1e-3)
    train(net, optimizer, 0, 2)
    names = ("a.weight", "b.weight", "head.weight")
    sizes = {name: net.get_parameter(name).numel() for name in names}
    assert sum(zeros(net, name) for name in names) == zeros_in(0.8, sum(sizes.values()))
    assert all(zeros(net, name) <= sizes[name] - max(1, round(0.01 * sizes[name])) for name in names)


def test_channels_of_an_activation_serve_every_size() -> None:
    net, optimizer = compressed({**BASE, "target": "activation", "pattern": "channel"})
    train(net, optimizer, 0, 4)
    assert pruner(net, "relu").mask.shape == (8, 1, 1) and zeros(net, "relu") == 4
    assert net.eval()(torch.randn(1, 3, 9, 7)).shape == (1, 4)


def test_a_mask_in_the_centre_serves_other_sizes() -> None:
    net, optimizer = compressed({**BASE, "target": "activation", "sizes": "centre", "match": {"name": "relu"}})
    train(net, optimizer, 0, 4)
    module = pruner(net, "relu")
    larger, smaller = torch.ones(1, 8, 6, 8), torch.ones(1, 8, 2, 2)
    assert torch.equal(module(larger)[0, :, 1:5, 2:6].bool(), module.mask) and int(
        (module(larger) == 0).sum()
    ) == zeros(net, "relu")
    assert torch.equal(module(smaller)[0].bool(), module.mask[:, 1:3, 1:3])
    with pytest.raises(InputError, match="sizes: centre, pattern: channel"):
        plain, optimizer = compressed({**BASE, "target": "activation", "match": {"name": "relu"}})
        train(plain, optimizer, 0, 4)
        plain.eval()(torch.randn(1, 3, 9, 7))


@pytest.mark.parametrize("size", [(4, 4), (8, 6), (2, 2)])
def test_a_mask_in_the_centre_is_exported_at_every_size(size: tuple[int, int], tmp_path: Path) -> None:
    net, optimizer = compressed({**BASE, "target": "activation", "sizes": "centre", "match": {"name": "relu"}}, INT8)
    train(net, optimizer, 0, 10)
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx", torch.randn(2, 3, *size))
    assert found.ok, str(found)
    assert pruner(net, "relu").mask.shape == (8, 4, 4)


@pytest.mark.parametrize("target", ["weight", "activation"])
def test_pruning_behind_quantization_exports(target: str, tmp_path: Path) -> None:
    rule = {**BASE, "target": target, "composition": "p(q(x))", "start": 8}
    net, optimizer = compressed(rule, INT8)
    train(net, optimizer, 0, 10)
    found = fxc.export_onnx(net.eval(), tmp_path / "net.onnx", image())
    assert found.ok, str(found)
    if target == "weight":
        assert int((integers(tmp_path / "net.onnx", "b") == 0).sum()) >= net.b.weight.numel() // 2


def integers(file: Path, layer: str) -> Tensor:
    """A convolution's stored weight."""
    model = onnx.load(file)
    stored = [
        t for t in model.graph.initializer if t.name.startswith(f"{layer}.") and t.data_type == onnx.TensorProto.INT8
    ]
    return torch.from_numpy(next(a for t in stored if (a := onnx.numpy_helper.to_array(t).copy()).ndim == 4))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_masks_survive_200_steps_of_adam_with_decay_and_quantization(pattern: str, tmp_path: Path) -> None:
    model = seeded(Two)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    rules = [{**BASE, "pattern": pattern, "match": {"name": "b"}}, INT8]
    net = fxc.compress(model, {"rules": rules}, image(), total_steps=200, optimizer=optimizer)
    train(net, optimizer, 0, 3)
    mask = pruner(net, "b.weight").mask.clone()
    train(net, optimizer, 3, 200)
    assert torch.equal(pruner(net, "b.weight").mask, mask)
    assert fxc.export_onnx(net.eval(), tmp_path / "net.onnx", image()).ok
    assert not integers(tmp_path / "net.onnx", "b")[~mask].any()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "channel"])
def test_it_stays_pruned_under_every_optimizer_and_in_an_average(name: str, pattern: str) -> None:
    model = seeded(Two)
    optimizer: Any = OPTIMIZERS[name](model.parameters())
    rule = {**BASE, "pattern": pattern, "match": {"name": ["a", "b"] if pattern == "channel" else "b"}}
    net = fxc.compress(model, {"rules": [rule]}, image(), total_steps=12, optimizer=optimizer)
    average = torch.optim.swa_utils.AveragedModel(net, avg_fn=lambda a, b, n: 0.9 * a + 0.1 * b)
    for step in range(12):
        train(net, optimizer, step, step + 1)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        average.update_parameters(net)
    mask = pruner(net, "b.weight").mask
    for twin in (net, copy.deepcopy(net), average.module.eval()):
        seen: list[Tensor] = []
        pruner(twin, "b.weight").register_forward_hook(lambda m, a, o, seen=seen: seen.append(o))
        twin(image())
        assert not seen[0][~mask.expand_as(seen[0])].any()
    assert not torch.equal(average.module.b.weight, net.b.weight)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"pattern": "2:4", "sparsity": 0.7}, "'sparsity' is 0.7 with pattern '2:4', which prunes 0.5 .*; drop it"),
        ({"pattern": "2:4", "match": {"name": "a"}}, r"rule 1 .*: weight 'a.weight' \(Conv2d\) has the shape \(8, 3, 3, 3\), which its pattern does not divide"),
        ({"criterion": "gradient", "target": "activation"}, "'criterion' is 'gradient' for activations"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"criterion": "nowhere:f"}, "'criterion' is 'nowhere:f', which cannot be found"),
        ({"scope": "global", "sparsity": 0.995}, "'sparsity' is 0.995, and 'floor' keeps 0.01 .*; lower one of them"),
        ({"scope": "global", "sparsity": 0.98, "floor": 0.02, "pattern": "channel"}, "its floor of 0.02 of every tensor, one at least, leaves 14"),
        ({"until": 8}, "'until' is 8 without an interval"),
        ({"release": 1}, "'release' is step 1; its mask is chosen until step 2"),
        ({"rewind": 5}, "'rewind' is step 5, after its ramp ends at step 2"),
        ({"sequence": "front-to-back"}, "'sequence' is 'front-to-back' .*; give 'start' and 'end'"),
        ({"sizes": "centre"}, "'sizes' is 'centre' .*; it is for single elements of activations"),
        ({"power": 2}, "'power' is 2 for a one-shot ramp"),
        ({"interval": 4, "ramp": "cubic"}, "its ramp ends at step 14, past total_steps=10"),
        ({"sparsity": None}, "missing key 'sparsity'"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_with_the_fix(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError, match=line):
        compressed({**BASE, **fields})


def test_every_choice_round_trips_through_text() -> None:
    rule = {**BASE, "criterion": "test_prune_rules:distance", "pattern": "4x1", "scope": "global", "floor": 0.1}
    spec = fxc.Spec.of({"rules": [{**rule, "interval": 3, "until": "90%", "rewind": "5%", "gradient": "dense"}]})
    assert fxc.Spec.parse(str(spec)) == spec
    assert fxc.Prune(target="weight", sparsity=0.5, criterion=distance).criterion == "test_prune_rules:distance"


def test_a_mask_in_the_centre_wants_a_convolution() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    rule = {**BASE, "target": "activation", "sizes": "centre"}
    with pytest.raises(SpecError, match=r"activation '1' .* comes out of no convolution, so it has no centre"):
        fxc.compress(model, {"rules": [rule]}, torch.randn(2, 3, 5, 4), total_steps=4)
