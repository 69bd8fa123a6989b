"""Islands: modules that no graph can hold run as written, and what stands inside them is captured all the same."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_follows, assert_same, copies, flat, rows, twins
from torch import Tensor, nn

import fxcompress as fxc

DATA = "its Python code needs the value of a tensor"


class Between(nn.Module):
    """A module between two layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.head, self.inner, self.tail = nn.Linear(6, 6), inner, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.inner(self.head(x))))


class Island(nn.Module):
    """Two layers, for a forward to call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)


class Decides(Island):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if y.sum() > -1e9 else y


class Loops(Island):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.argmax() % 3) + 1):
            x = torch.tanh(self.b(self.a(x)))
        return x


class Selects(Island):
    def forward(self, x: Tensor) -> Tensor:
        kept = torch.nonzero(x[:, 0] > 0).flatten()
        return torch.cat([self.a(x[kept]), self.b(x)])


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 3 * grads[0]


class Binary(Island):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(Sign.apply(self.a(x)))


class Half(Island):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.a(x)
        return self.b(x.float())


class Counts(Island):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(self.a(x)) * self.calls


class Remembers(Island):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.a(x).detach())
        return self.b(x) + self.seen[-1]


class Skips(Island):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if random.random() < 2 else x * random.random()


class Jitters(Island):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * random.random()


class Numbers(Island):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * self.a.bias.mean().item()


MODELS: dict[str, tuple[type[Island], str]] = {
    "decides": (Decides, DATA),
    "loops": (Loops, DATA),
    "selects": (Selects, "what 'nonzero' yields depends on the values of a tensor"),
    "function": (Binary, "autograd.Function"),
    "autocast": (Half, "torch.autocast"),
    "counts": (Counts, "changes 'calls' of Counts"),
    "remembers": (Remembers, "changes 'seen' of Remembers"),
    "python draws": (Skips, "draws random numbers"),
    "python noise": (Jitters, "draws random numbers"),
    "item": (Numbers, "what 'item' yields depends on the values of a tensor"),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    cls, reason = MODELS[request.param]
    return Between(cls()), reason


def test_the_island_is_the_model(case: tuple[nn.Module, str]) -> None:
    model, net = twins(case[0], rows(6))
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6))


def test_another_batch_is_the_models_too(case: tuple[nn.Module, str]) -> None:
    model, net = twins(case[0], rows(6))
    assert_follows(model, net, -3 * rows(6)[:3])


def test_the_island_says_what_it_is_and_why(case: tuple[nn.Module, str]) -> None:
    model, reason = case
    _, net = twins(model, rows(6))
    [(path, island)] = net.islands.items()
    assert (path, island.cls) == ("inner", type(model.inner).__name__)
    assert reason in island.reason
    assert not island.hooked


def test_what_stands_inside_is_captured(case: tuple[nn.Module, str]) -> None:
    _, net = twins(case[0], rows(6))
    assert set(net._regions) == {"", "inner.a", "inner.b"}
    weights = {f"{layer}.weight" for layer in ("head", "inner.a", "inner.b", "tail")}
    sites = dict(net.compression.named_modules())
    assert {w for w in weights if f"{w}_pruner" in sites and f"{w}_quantizer" in sites} == weights


def test_an_island_does_nothing_at_compress(case: tuple[nn.Module, str]) -> None:
    model = case[0]
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate()
    plain = {k: copy.copy(v) for k, v in vars(model.inner).items() if not k.startswith("_")}
    _, net = twins(model, rows(6))
    assert {k: v for k, v in vars(model.inner).items() if not k.startswith("_")} == plain
    assert {k: v for k, v in vars(net.inner).items() if not k.startswith("_")} == plain
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_schedule_acts_inside(case: tuple[nn.Module, str]) -> None:
    original = copy.deepcopy(case[0]).eval()
    net = fxc.compress(case[0], "P0.5(w)@1 -> Q4(w)@2", rows(6), total_steps=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        net(rows(6)).square().mean().backward()
        optimizer.step()
        net.schedule.step()
    net.eval()
    for path, layer in original.named_modules():
        if isinstance(layer, nn.Linear):
            pruner = net.get_submodule(f"compression.{path}.weight_pruner")
            quantizer = net.get_submodule(f"compression.{path}.weight_quantizer")
            trained = net.get_submodule(path)
            layer.weight.data = quantizer(pruner(trained.weight)).detach()
            layer.bias.data = trained.bias.detach()
            assert float((layer.weight == 0).float().mean()) >= 0.5
            assert len(layer.weight.unique()) <= 16 * len(layer.weight)
    for name in ("calls", "seen"):
        if hasattr(net.inner, name):
            setattr(original.inner, name, copy.copy(getattr(net.inner, name)))
    random.seed(7)
    expected = original(rows(6))
    random.seed(7)
    assert torch.equal(net(rows(6)), expected)


def test_the_report_lists_what_stands_inside(case: tuple[nn.Module, str]) -> None:
    _, net = twins(case[0], rows(6))
    weights = {r.name: r for r in fxc.report(net).rows if r.kind == "weight"}
    assert set(weights) == {"head.weight", "inner.a.weight", "inner.b.weight", "tail.weight"}
    assert all(r.rewritten and r.macs > 0 for r in weights.values())


def test_a_state_dict_goes_round(case: tuple[nn.Module, str]) -> None:
    model = case[0]
    names = list(model.state_dict())
    net = fxc.compress(copy.deepcopy(model), "P0.5(w)@1 -> Q8(w,f)@2", rows(6), total_steps=4)
    other = fxc.compress(copy.deepcopy(model), "P0.5(w)@1 -> Q8(w,f)@2", rows(6), total_steps=4)
    assert [k for k in net.state_dict() if not k.startswith(("_extra", "compression"))] == names
    for _ in range(4):
        net(2 * rows(6))
        net.schedule.step()
    net.inner.a.weight.data += 1
    other.load_state_dict(copy.deepcopy(net.state_dict()), strict=True)
    assert other.schedule.steps == 4
    vars(other.inner).update({k: v for k, v in vars(net.inner).items() if k in ("calls", "seen")})
    assert_same(copy.deepcopy(net).eval(), other.eval(), rows(6))


def test_parameters_stay_the_models_own(case: tuple[nn.Module, str]) -> None:
    net = fxc.compress(case[0], "Q8(w,f)", rows(6), total_steps=10)
    assert all(a is b for a, b in zip(case[0].parameters(), net.parameters(), strict=True))
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in case[0].named_parameters()]


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Between(Decides()), nn.Sequential(nn.Linear(3, 6), Half(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_the_smallest_island_is_chosen() -> None:
    model, net = twins(Outer(), rows(6))
    assert set(net.islands) == {"first.inner", "second.1"}
    assert set(net._regions) == {"", "first.inner.a", "first.inner.b", "second.1.a", "second.1.b"}
    assert_follows(model, net, rows(6))


class Nested(nn.Module):
    """An island in a region in an island."""

    def __init__(self) -> None:
        super().__init__()
        self.region, self.fc = Between(Decides()), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.region(x)
        return self.fc(y) if y.sum() > -1e9 else y


def test_islands_in_regions_in_islands() -> None:
    model, net = twins(Nested(), rows(6))
    assert set(net.islands) == {"", "region.inner"}
    assert set(net._regions) == {"region", "fc", "region.inner.a", "region.inner.b"}
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6))


class Detector(nn.Module):
    """A root that decides on data in training and keeps what is likely in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.heads = nn.ModuleDict({"score": nn.Conv2d(4, 1, 1), "box": nn.Conv2d(4, 4, 1)})

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        x = self.backbone(torch.stack(images))
        scores, boxes = self.heads["score"](x).flatten(1), self.heads["box"](x).flatten(2)
        if self.training:
            for target in targets or ():
                if (target["boxes"][:, 2:] <= target["boxes"][:, :2]).any():
                    raise ValueError("a box has no area")
            labels = torch.stack([t["boxes"].mean() for t in targets or ()])
            return {"score": F.mse_loss(scores.mean(1), labels), "box": boxes.square().mean()}
        kept = [row > row.median() for row in scores]
        return [{"boxes": b.t()[k], "scores": s[k]} for b, s, k in zip(boxes, scores, kept, strict=True)]


def pictures(size: int = 6) -> list[Tensor]:
    return [torch.randn(3, size, size, generator=torch.Generator().manual_seed(i)) for i in range(2)]


TARGETS = [{"boxes": torch.tensor([[0.0, 0.0, 2.0, 3.0]])}, {"boxes": torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2)}]


@pytest.mark.parametrize("training", [True, False])
def test_a_detector_is_an_island_whose_parts_are_captured(training: bool) -> None:
    torch.manual_seed(0)
    model, net = twins(Detector().train(training), (pictures(), TARGETS))
    assert set(net.islands) == {""}
    assert set(net._regions) == {"backbone", "heads.score", "heads.box"}
    for twin in copies(net):
        original = copy.deepcopy(model)
        assert_follows(original, twin, pictures(), TARGETS)
        assert_same(original.eval(), twin.eval(), pictures(9))
        with pytest.raises(ValueError, match="targets are needed"):
            twin.train()(pictures())
        with pytest.raises(ValueError, match="a box has no area"):
            twin.train()(pictures(), [{"boxes": -t["boxes"]} for t in TARGETS])


def test_a_detector_trains_on_the_schedule() -> None:
    torch.manual_seed(0)
    net = fxc.compress(Detector(), "P0.5(w)@1 -> Q8(w,f)@2", (pictures(), TARGETS), total_steps=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        sum(net(pictures(), TARGETS).values()).backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        net.schedule.step()
    found = fxc.report(net).rows
    assert {r.name: (r.bits, r.sparsity) for r in found if r.kind == "weight"} == {
        "backbone.0.weight": (8, 0.5),
        "heads.score.weight": (8, 0.5),
        "heads.box.weight": (8, 0.5),
    }
    assert all(r.bits == 8 for r in found if r.kind == "activation" and r.rewritten)
    assert all(len(image["scores"]) for image in net.eval()(pictures()))


def double(_: nn.Module, args: Any, out: Tensor) -> Tensor:
    return 2 * out


def shift(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] + 1,)


def shrink(_: nn.Module, grads: Any, outs: Any) -> tuple[Tensor]:
    return (grads[0] / 4,)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "after": lambda m: m.register_forward_hook(double),
    "before": lambda m: m.register_forward_pre_hook(shift),
    "backward": lambda m: m.register_full_backward_hook(shrink),
}


class Block(Island):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_a_submodule_run(kind: str) -> None:
    model = Between(Block())
    plain = copy.deepcopy(model)
    HOOKS[kind](model.inner)
    model, net = twins(model, rows(6))
    assert [(path, i.hooked) for path, i in net.islands.items()] == [("inner", True)]
    assert set(net._regions) == {"", "inner"}
    assert {f"inner.{layer}.weight_quantizer" for layer in "ab"} <= dict(net.compression.named_modules()).keys()
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6))
    with pytest.raises(AssertionError):
        assert_same(plain, net, rows(6))


@pytest.mark.parametrize(
    "kind",
    [
        "after",
        "before",
        "backward",
    ],
)
def test_hooks_on_the_root_run(kind: str) -> None:
    model = Between(Block())
    HOOKS[kind](model)
    model, net = twins(model, rows(6))
    assert not net.islands
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6).requires_grad_())


@pytest.mark.parametrize("path", ["inner", ""])
def test_hooks_on_an_island_run(path: str) -> None:
    model = Nested() if path == "" else Between(Decides())
    model.get_submodule(path).register_forward_hook(double)
    model, net = twins(model, rows(6))
    assert path in net.islands
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6))


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("path", ["inner", ""])
def test_a_hook_comes_and_goes(kind: str, path: str) -> None:
    model = Between(Decides())
    handle = HOOKS[kind](model.get_submodule(path))
    model, net = twins(model, rows(6))
    added = [HOOKS[kind](m.get_submodule(path)) for m in (model, net)]
    assert_follows(model, net, rows(6).requires_grad_())
    for one in added:
        one.remove()
    assert_follows(model, net, rows(6).requires_grad_())
    handle.remove()


def test_a_hook_on_a_leaf_runs() -> None:
    model = Between(nn.ReLU())
    model.inner.register_forward_hook(double)
    model, net = twins(model, rows(6))
    assert_follows(model, net, rows(6))


def test_a_hook_on_a_layer_runs() -> None:
    model = Between(Block())
    model.inner.a.register_forward_hook(double)
    model, net = twins(model, rows(6))
    assert set(net.islands) == {"inner.a"}
    assert "inner.a.weight_quantizer" in dict(net.compression.named_modules())
    assert_follows(model, net, rows(6))


class Flexible(nn.Module):
    """Arguments of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Any, mask: Tensor | None = None, *, scale: float = 1.0, kind: str = "relu") -> Any:
        x = sum(x) if isinstance(x, list) else x
        y = getattr(torch, kind)(self.fc(x)) * scale
        y = y if mask is None else y.masked_fill(mask, -1.0)
        return {"y": y, "both": [y, (x, None)]}


class Calls(nn.Module):
    """Calls one module in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.fc = Flexible(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.part(x)
        b = self.part(a["y"], x > 0)
        c = self.part([x, b["y"]], x > 0, scale=2.0)
        d = self.part([x, x, x, c["y"]], kind="tanh")
        e = self.part(x, scale=float(d["y"].detach().sum()))
        f = self.part(x=x, mask=None, kind="tanh")
        return self.fc(sum(p["y"] + p["both"][0] for p in (a, b, c, d, e, f)))


def test_one_module_is_called_in_many_ways() -> None:
    model, net = twins(Calls(), rows(6))
    assert set(net.islands) == {""}
    assert set(net._regions) == {"part", "fc"}
    assert len(net._regions["part"]) == 5  # `e` is like `a`
    assert [len({id(g) for g in net.graphs}), len(net.graphs)] == [6, 6]
    assert sum(path.endswith("fc.weight_quantizer") for path in dict(net.compression.named_modules())) == 2
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6))


def test_each_region_has_quantizers_of_its_own_inputs() -> None:
    _, net = twins(Between(Half()), rows(6))
    used = [{str(n.target) for n in g.nodes if "quantizer" in str(n.target)} for g in net.graphs]
    assert len(set.union(*used)) == sum(map(len, used))


class Packs(nn.Module):
    """Containers in and out of an island between graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.inner, self.tail = nn.Linear(6, 6), Unpacks(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.fc(x)
        out = self.inner({"x": x, "all": [y, (x, None)]}, flag=True, count=x.shape[0])
        assert isinstance(out, dict)
        assert out["nothing"] is None
        assert out["word"] == "word"
        first, *rest = out["tensors"]
        z = first + sum(rest) + out["pair"][1]
        return {"z": self.tail(z), "out": out}


class Unpacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, data: dict[str, Any], *, flag: bool, count: int) -> dict[str, Any]:
        assert flag is True
        assert type(count) is int
        y, (x, nothing) = data["all"]
        z = self.a(y) if y.sum() > -1e9 else y
        pair = (count, x * count)
        return {"tensors": [x, y, z], "pair": pair, "nothing": nothing, "word": "word"}


def test_containers_in_and_out() -> None:
    model, net = twins(Packs(), rows(6))
    assert set(net.islands) == {"inner"}
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, rows(6))
    assert_follows(model, net, torch.cat([rows(6)] * 2))


class Repeats(nn.Module):
    """An island that is called twice, with results of other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tail = Selects(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.inner(self.inner(x)))


def test_an_island_called_twice() -> None:
    model, net = twins(Repeats(), rows(6))
    assert set(net.islands) == {"inner"}
    for x in (rows(6), -rows(6), rows(6)[:2]):
        assert_follows(model, net, x)


class Reads(nn.Module):
    """Decides on the shape of what an island selects."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tail = Selects(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.tail(y) if y.shape[0] > 5 else y


def test_nothing_is_decided_on_what_an_island_selects() -> None:
    torch.manual_seed(0)
    model, net = twins(Reads(), rows(6))
    assert set(net.islands) == {"", "inner"}
    assert_follows(model, net, rows(6))
    for sign in (1, -1):
        x = torch.cat([sign * torch.ones(4, 1), rows(6)[:, 1:]], 1)
        assert_follows(model, net, x)
        assert flat(net(x))[0].shape[1] == (2 if sign > 0 else 6)


class Either(Island):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_what_the_example_inputs_do_not_reach_is_left_alone_with_the_reason() -> None:
    model, net = twins(Either(), torch.ones(2, 6))
    for x in (torch.ones(2, 6), -torch.ones(2, 6)):
        assert_follows(model, net, x)
    rewritten = {r.name: r.rewritten for r in fxc.report(net).rows if r.kind == "weight"}
    assert rewritten == {"a.weight": True, "b.weight": False}
    [reason] = [r.reason for r in fxc.report(net).rows if r.name == "b.weight"]
    assert reason == f"no captured part of the model (an island) reads it ({DATA})"
