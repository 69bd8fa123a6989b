"""Calls of every shape: signatures, structures, control flow on shapes, in-place code, and weights wherever they are."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import Does, assert_follows, assert_same, copies, flat, image, rows, twins
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import CaptureError, InputError


class Layer(nn.Module):
    """One linear layer, for a forward to call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)


class Defaults(Layer):
    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0, act: str = "relu") -> Tensor:
        z = getattr(torch, act)(self.fc(x)) * scale
        return z if y is None else z + self.fc(y)


class KeywordOnly(Layer):
    def forward(self, x: Tensor, *, bias: Tensor, scale: int = 2, flip: bool = False) -> Tensor:
        z = self.fc(x) * scale + bias
        return z.flip(0) if flip else z


class PositionalOnly(Layer):
    def forward(self, x: Tensor, y: Tensor, /, scale: float) -> Tensor:
        return self.fc(x - y) / scale


class Variadic(Layer):
    def forward(self, *xs: Tensor, **more: Tensor) -> Tensor:
        return self.fc(sum(xs) + sum(more[k] for k in sorted(more)))


class VariadicAfterDefault(Layer):
    def forward(self, x: Tensor, scale: float = 1.0, *xs: Tensor, **more: Tensor) -> Tensor:
        return self.fc(sum(xs, x)) * scale + sum(more.values())


class RequiredAfterDefault(Layer):
    def forward(self, x: Tensor, scale: float = 2.0, *, bias: Tensor) -> Tensor:
        return self.fc(x) * scale + bias


A, B = rows(6), rows(6).flip(0)
Args = tuple[tuple[Any, ...], dict[str, Any]]


def given(*args: Any, **kwargs: Any) -> Args:
    return args, kwargs


@pytest.mark.parametrize(
    ("cls", "example", "calls"),
    [
        (Defaults, (A,), [given(A), given(A, B), given(x=A, scale=3.0), given(A, act="tanh"), given(B, None, 1.5, "relu")]),
        (Defaults, (A, B, 3), [given(A, B), given(A), given(scale=0.5, y=B, x=A), given(A, B, 2), given(A, A)]),
        (Defaults, {"x": A, "act": "tanh"}, [given(A), given(A, act="tanh"), given(y=A, x=B)]),
        (KeywordOnly, {"x": A, "bias": B}, [given(A, bias=B), given(A, bias=A, flip=True), given(x=A, bias=B, scale=3)]),
        pytest.param(PositionalOnly, (A, B, 2.0), [given(A, B, 2.0), given(B, A, scale=3.0), given(A, A, 4)]),
        (Variadic, (A,), [given(A), given(A, B), given(A, B, A), given(A, a=B), given(A, b=B, a=A)]),
        (Variadic, {"a": A, "b": B}, [given(a=A), given(b=B, a=A), given(A), given(A, a=B)]),
        pytest.param(
            VariadicAfterDefault, (A,), [given(A), given(A, 2.0, B), given(A, b=B), given(A, 1.0, A, A, b=B)]
        ),
        pytest.param(
            RequiredAfterDefault, {"x": A, "bias": B}, [given(A, bias=B), given(A, 3.0, bias=A)]
        ),
    ],
)  # fmt: skip
def test_arguments(cls: type[nn.Module], example: Any, calls: list[Args]) -> None:
    model, net = twins(cls(), example)
    for args, kwargs in calls:
        assert_follows(model, net, *args, **kwargs)
    assert not net.islands
    for twin in copies(net)[1:]:
        for args, kwargs in calls:
            assert_follows(copy.deepcopy(model), twin, *args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((A, B, 1.0, "relu", 5), {}), ((A,), {"z": A}), ((A,), {"x": A})]
)
def test_a_call_that_does_not_fit_is_a_type_error(args: Any, kwargs: Any) -> None:
    model, net = twins(Defaults(), A)
    for one in (model, net):
        with pytest.raises(TypeError):
            one(*args, **kwargs)


def test_an_argument_that_nobody_can_look_into_is_refused() -> None:
    class Opaque(Layer):
        def forward(self, x: Tensor, how: Any = None) -> Tensor:
            return self.fc(x)

    _, net = twins(Opaque(), A)
    with pytest.raises(InputError, match="argument 'how' is a object, whose inside cannot be seen"):
        net(A, object())


def test_what_is_met_later_shares_quantizers_and_the_schedule() -> None:
    net = fxc.compress(Defaults(), "P0.5(w)@1 -> Q8(w,f)@2", A, total_steps=4)
    before = set(net.state_dict())
    for _ in range(4):
        net(A)
        net.schedule.step()
    net.eval()
    expected = net(A, scale=3.0)
    net(A, B)
    assert set(net.state_dict()) == before
    assert torch.equal(net(A, scale=3.0), expected)
    weight = [str(n.target) for g in net.graphs for n in g.nodes if "fc.weight_quantizer" in str(n.target)]
    assert len(weight) >= 2
    assert set(weight) == {"compression.fc.weight_quantizer"}


class Masked(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, more: dict[str, Tensor | None] | None = None) -> Tensor:
        y = self.fc(x)
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        if more is not None and more["bias"] is not None:
            y = y + more["bias"]
        return y


@pytest.mark.parametrize("example", [(A,), (A, A > 0), (A, None, {"bias": None}), (A, A > 0, {"bias": B})])
def test_none_comes_and_goes(example: Any) -> None:
    model, net = twins(Masked(), example)
    for args in ((A,), (A, A > 0), (A, None, {"bias": B}), (A, B > 0, {"bias": None}), (B, None, None)):
        assert_follows(model, net, *args)
    assert len(net.graphs) == 4 + (len(example) == 3)


class Same(Layer):
    """Writes to one of its inputs, and looks whether they are one."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        factor = 2 if x is y else 1
        x += 1
        return self.fc(x) * factor + y


@pytest.mark.parametrize("same", [True, False])
def test_one_tensor_twice_is_not_two(same: bool) -> None:
    model, net = twins(Same(), (A, A) if same else (A, B))
    for args in ((A, A), (A, B), (A, A.clone()), (B, B)):
        assert_follows(model, net, *args)
    assert len(net.graphs) == 2


def written(m: Any, x: Tensor) -> Tensor:
    y = z = m.layer(x)
    y += 1
    return y.mul_(3) * (2 if y is z else 1)


@pytest.mark.xfail(strict=True, reason="what writes in place yields another symbol than the one it writes to")
def test_what_is_written_in_place_stays_itself() -> None:
    model, net = twins(Does(written, nn.Linear(6, 6)), A)
    assert_follows(model, net, A)


def test_one_tensor_in_two_containers() -> None:
    class Nested(Layer):
        def forward(self, xs: list[Tensor], more: dict[str, Tensor]) -> Tensor:
            return self.fc(xs[0]) * (2 if xs[1] is more["a"] else 1)

    model, net = twins(Nested(), ([A, A], {"a": A}))
    for args in (([A, A], {"a": A}), ([A, B], {"a": B}), ([A, B], {"a": A}), ([A, A], {"a": B})):
        assert_follows(model, net, *args)


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass
class Output:
    value: Tensor
    hidden: tuple[Tensor, ...] | None = None
    count: int = 0


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As transformers has it: a dataclass that is a dict without its Nones."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@dataclasses.dataclass
class Hugging(ModelOutput):
    logits: Tensor | None = None
    hidden: Any = None


STRUCTURES: dict[str, Callable[[Any, Tensor], Any]] = {
    "tuple": lambda m, x: (m.layer(x), x),
    "one": lambda m, x: (m.layer(x),),
    "list": lambda m, x: [m.layer(x), [x, None]],
    "dict": lambda m, x: {"y": m.layer(x), "n": {"x": x, "none": None, "number": 3, "word": "w"}},
    "ordered": lambda m, x: OrderedDict([("z", m.layer(x)), ("a", OrderedDict(x=x))]),
    "namedtuple": lambda m, x: Pair(m.layer(x), Pair(x, [x])),
    "dataclass": lambda m, x: Output(m.layer(x), (x, x + 1), x.shape[0]),
    "half a dataclass": lambda m, x: Output(m.layer(x)),
    "model output": lambda m, x: Hugging(logits=m.layer(x), hidden=(x, Pair(x, None))),
    "half a model output": lambda m, x: Hugging(logits=m.layer(x)),
    "keys that are numbers": lambda m, x: {0: m.layer(x), (1, 2): x},
    "shape": lambda m, x: (m.layer(x), x.shape, x.size(0), x.dtype, x.dim()),
    "views": lambda m, x: (*m.layer(x).chunk(2, 1), *x.unbind(0)),
    "torch's own": lambda m, x: (m.layer(x).max(1), torch.topk(x, 2)),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_outputs_are_what_the_model_gives(kind: str) -> None:
    model, net = twins(Does(STRUCTURES[kind], nn.Linear(6, 6)), A)
    assert not net.islands
    assert_follows(model, net, A)
    assert_follows(model, net, torch.cat([A, B])) if kind != "views" else None


class Structured(Layer):
    def forward(self, data: Any) -> Any:
        found = [t for t in flat(data) if isinstance(t, Tensor)]
        return type(data), [self.fc(t) for t in found]


class Reads(Layer):
    def forward(self, xs: list[Tensor], data: dict[str, Any], pair: Pair, out: Output) -> Any:
        y = sum(self.fc(x) for x in xs)
        for name, value in data.items():
            y = y + (value[0] if name == "list" else value)
        first, (second, _) = pair
        return {"y": y * first + second, "value": out.value + out.count, "n": len(xs)}


def structures(n: int, count: int = 1) -> Args:
    data = {"list": [A, B], "x": B}
    return ([A] * n, data, Pair(A, (B, None)), Output(A, None, count)), {}


def test_inputs_in_containers() -> None:
    model, net = twins(Reads(), structures(2)[0])
    assert not net.islands
    for n in (2, 3, 1):
        assert_follows(model, net, *structures(n, n)[0])
    xs, _, pair, out = structures(2)[0]
    assert_follows(model, net, tuple(xs), OrderedDict(x=A, y=B), pair, out)
    for twin in copies(net)[1:]:
        assert_follows(copy.deepcopy(model), twin, *structures(2)[0])


def by_height(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if x.shape[2] > 4 else m.layer(2 * x)


def over_width(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    for i in range(x.shape[3]):
        y = y + x[..., i : i + 1]
    return y


def to_rows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.layer(x).reshape(b, c, h * w).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)


def with_len(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * len(x)


def with_int(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)[:, :, : int(x.shape[2] / 2)]


def with_ceil(m: Any, x: Tensor) -> Tensor:
    h = math.ceil(x.shape[-2] / 3) * 3
    return m.layer(F.pad(x, (0, 0, 0, h - x.shape[-2])))


def with_floor_and_sqrt(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * math.sqrt(x.shape[1]) + math.floor(x.size(3) / 3)


def with_max(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) / max(x.shape[2], 7)


def with_interpolate(m: Any, x: Tensor) -> Tensor:
    y = F.interpolate(m.layer(x), scale_factor=2.0)
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False) + x


def with_grid(m: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.size()
    grid = torch.arange(h, device=x.device)[:, None] * w + torch.arange(w, dtype=x.dtype)
    return m.layer(x) + grid + torch.linspace(0, 1, w) + torch.zeros(h, 1).new_ones(h, w)


def with_asserts(m: Any, x: Tensor) -> Tensor:
    assert x.ndim == 4
    assert x.shape[1] == 3, f"expected 3 channels, got {x.shape[1]}"
    torch._assert(x.shape[2] >= 2, "too small")
    return m.layer(x) if x.dtype == torch.float32 and x.is_floating_point() else x


def with_heads(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x).flatten(2).unflatten(2, (-1, 2))
    return (y @ y.transpose(-2, -1) / y.shape[-1] ** 0.5).softmax(-1)


def with_windows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x, (0, (3 - w % 3) % 3, 0, (3 - h % 3) % 3))
    x = x.view(b, c, x.shape[2] // 3, 3, x.shape[3] // 3, 3).permute(0, 2, 4, 1, 3, 5)
    return m.layer(x.reshape(-1, c, 3, 3))


def sized(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


SAME, ANY = [(3, 5, 4), (1, 5, 4)], [(3, 5, 4), (1, 5, 4), (2, 7, 8), (2, 6, 5)]
FLOWS: list[tuple[Callable[..., Tensor], list[tuple[int, int, int]], tuple[int, int, int] | None, str]] = [
    (by_height, [*SAME, (2, 7, 8), (2, 6, 5)], (2, 4, 4), r"where x\.shape\[2\] > 4 is True, and now it is False"),
    (over_width, [*SAME, (2, 9, 4)], (2, 5, 5), r"where x\.shape\[3\] is 4, and now it is 5"),
    (to_rows, ANY, None, ""),
    (with_len, [(2, 5, 4), (2, 7, 8)], (3, 5, 4), r"where the length of x is 2, and now it is 3"),
    (with_int, [*SAME, (2, 5, 9)], (2, 9, 4), r"where x\.shape\[2\] / 2 is 2\.5, and now it is 4\.5"),
    (with_ceil, ANY, None, ""),
    (with_floor_and_sqrt, ANY, None, ""),
    (with_max, [*SAME, (2, 6, 4)], (2, 9, 4), r"where x\.shape\[2\] < 7 is True, and now it is False"),
    (with_interpolate, ANY, None, ""),
    (with_grid, ANY, None, ""),
    (with_asserts, ANY, (2, 1, 4), "too small|x\\.shape\\[2\\] >= 2"),
    (with_heads, [*SAME, (2, 7, 8), (2, 6, 5)], None, ""),
    (with_windows, ANY, None, ""),
]


@pytest.mark.parametrize(("forward", "fine", "broken", "message"), FLOWS, ids=[f[0].__name__ for f in FLOWS])
def test_control_flow_on_shapes(forward: Any, fine: Any, broken: Any, message: str) -> None:
    model, net = twins(Does(forward, nn.Conv2d(3, 3, 1)), sized(2, 5, 4))
    assert not net.islands
    assert_follows(model, net, sized(2, 5, 4))
    for size in fine:
        assert_follows(model, net, sized(*size))
    if broken is not None:
        with pytest.raises((InputError, AssertionError), match=message):
            net(sized(*broken))


def test_an_error_names_the_assumption_and_says_what_to_do() -> None:
    _, net = twins(Does(by_height, nn.Conv2d(3, 3, 1)), sized(2, 5, 4))
    with pytest.raises(InputError) as found:
        net(sized(2, 3, 3))
    assert str(found.value) == (
        "the model was captured where x.shape[2] > 4 is True, and now it is False; compress with example inputs like "
        "those that the net is called with"
    )


def test_control_flow_on_numbers() -> None:
    class Powers(Layer):
        def forward(self, x: Tensor, n: int, p: float = 0.5) -> Tensor:
            return self.fc(x) ** n * p if p > 0.1 else self.fc(x)

    model, net = twins(Powers(), (A, 2))
    for args in ((A, 2), (A, 3), (A, 3, 0.2), (A, 2, 4.0)):
        assert_follows(model, net, *args)
    with pytest.raises(InputError, match=r"where p > 0\.1 is True, and now it is False"):
        net(A, 2, 0.05)


def write_column(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y[:, 0] = x[:, 1]
    y[1:, 2:4] *= 2
    return y


def write_input(m: Any, x: Tensor) -> Tensor:
    x[:, 0] = 1.0
    x += 1
    return m.layer(x)


def write_view(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x).clone()
    left, right = y[:, :3], y.narrow(1, 3, 3)
    left += right
    left.relu_()
    return y


def write_alias(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y
    z += x
    return y * z


def rebind(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    z = y
    z = z + x
    return y * z


def write_unused(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y.mul_(2)
    F.dropout(y, 0.5, True, inplace=True)
    torch.negative_(y)
    y.view(-1)[0].zero_()
    return y


def write_out(m: Any, x: Tensor) -> Tensor:
    buffer = torch.empty(0)
    with torch.no_grad():
        torch.mul(x, 2, out=buffer)
    return m.layer(buffer)


def write_zeros(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 6)
    y[:, ::2] = m.layer(x)[:, ::2]
    y[:, 1] += 1
    return y


def write_constant(m: Any, x: Tensor) -> Tensor:
    y = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y += 1
    y[0] = 7
    return m.layer(x) * y


def write_list(m: Any, x: Tensor) -> Tensor:
    y = torch.full((2,), 3.0)
    y[0] += x.shape[0]
    parts = [m.layer(x)]
    for i in range(2):
        parts.append(parts[-1].add_(y[i]))
    return torch.cat(parts)


def write_masked(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y.masked_fill_(x > 0, 0.5)
    z = torch.ones_like(y)
    z[x < 0] = 0
    return y * z.triu_()


def write_index(m: Any, x: Tensor) -> Tensor:
    index = torch.arange(x.shape[1]).flip(0)
    y = torch.zeros_like(x)
    y.index_copy_(1, index, m.layer(x))
    return y.scatter_add_(1, index.expand_as(x), x)


IN_PLACE = [
    write_column, write_input, write_view, write_alias, rebind, write_unused, write_out, write_zeros, write_constant,
    write_list, write_masked, write_index,
]  # fmt: skip


@pytest.mark.parametrize("forward", IN_PLACE, ids=lambda f: f.__name__)
def test_in_place_code(forward: Any) -> None:
    model, net = twins(Does(forward, nn.Linear(6, 6)), A)
    assert not net.islands
    for x in (A, B, A):
        assert_follows(model, net, x)
    if forward is not write_list:
        assert_follows(model, net, torch.cat([A, B]))


class Accumulates(Layer):
    """Writes to a buffer of its own, in place and by assignment of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total += x.detach().sum(0)
            self.steps.add_(1)
            self.total[0] = 1.0
        return self.fc(x) - self.total / self.steps


def test_buffers_are_written_as_by_the_model() -> None:
    model, net = twins(Accumulates(), A)
    assert not net.total.any()
    for twin in copies(net):
        original = copy.deepcopy(model)
        assert_follows(original, twin, A)
        assert_follows(original, twin, B)
        assert int(twin.steps) == 4


class Assigned(Accumulates):
    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total * 0.5 + x.detach().sum(0)
        return self.fc(x) - self.total


def test_a_buffer_that_is_assigned_makes_an_island() -> None:
    model, net = twins(Assigned(), A)
    assert "changes" in net.islands[""].reason
    for twin in copies(net):
        assert_follows(copy.deepcopy(model), twin, A)


def weighted(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(6, 6)), nn.ReLU(), norm(nn.Linear(6, 3)))


PARAMETRIZED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrized_weights(kind: str) -> None:
    model, net = twins(weighted(PARAMETRIZED[kind]), A, "Q8(f)")
    for twin in (net, copy.deepcopy(net)):
        original = copy.deepcopy(model)
        for _ in range(2):
            assert_follows(original, twin, A)


def test_the_vectors_of_spectral_norm_move_in_training_alone() -> None:
    model, net = twins(weighted(PARAMETRIZED["spectral_norm"]), A, "Q8(f)")
    vectors = dict(net.named_buffers())
    moving = [name for name, _ in model.named_buffers()]
    assert [name.rpartition(".")[2] for name in moving] == ["_u", "_v"] * 2
    before = {name: vectors[name].clone() for name in moving}
    net.eval()(A)
    assert all(torch.equal(before[name], vectors[name]) for name in moving)
    net.train()(A)
    assert not any(torch.equal(before[name], vectors[name]) for name in moving)


def old(norm: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def apply(layer: nn.Module) -> nn.Module:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return norm(layer)

    return apply


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=lambda f: f.__name__)
def test_weights_that_hooks_compute(norm: Any) -> None:
    model = weighted(old(norm))
    net = fxc.compress(weighted(old(norm)), "Q8(f)", A, total_steps=10)
    assert [k for k in net.state_dict() if not k.startswith(("_extra", "compression"))] == list(model.state_dict())
    for _ in range(2):
        assert_follows(model, net, A)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(self.fc(self.embed(ids)))))


def test_tied_weights_have_one_pruner_and_quantizer() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    model, net = twins(Tied(), ids)
    assert_follows(model, net, ids)
    weights = [path for path, _ in net.compression.named_modules() if path.endswith("weight_pruner")]
    assert sorted(weights) == ["embed.weight_pruner", "fc.weight_pruner"]
    assert net.head.weight is net.embed.weight


class Functional(nn.Module):
    """Weights that no layer owns, and layers whose weights are used without them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.rand(4, 1, 1))})
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=1) * self.named["scale"]
        y = F.linear(y.mean((2, 3)), *self.layers)
        return (
            F.linear(y, self.fc.weight)
            + y @ self.fc.weight.t()
            + F.linear(input=y, weight=self.fc.weight, bias=self.fc.bias)
        )


def test_functional_use_of_weights() -> None:
    model, net = twins(Functional(), image())
    assert_follows(model, net, image())
    found = {r.name for r in fxc.report(net).rows if r.kind == "weight" and r.rewritten}
    assert found == {"weight", "layers.0", "fc.weight"}


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.fc = nn.Linear(8, 3)

    def forward(
        self,
        q: Tensor,
        kv: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = True,
        average_attn_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        kv = q if kv is None else kv
        y, weights = self.attention(q, kv, kv, key_padding_mask, need_weights, attn_mask, average_attn_weights)
        return self.fc(y), weights


SEQUENCE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
OTHER = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(4))
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
MASKS: dict[str, Args] = {
    "self": given(SEQUENCE),
    "no weights": given(SEQUENCE, need_weights=False),
    "causal": given(SEQUENCE, attn_mask=CAUSAL, need_weights=False),
    "padding": given(SEQUENCE, key_padding_mask=PADDING),
    "padding and causal": given(SEQUENCE, key_padding_mask=PADDING, attn_mask=CAUSAL.isinf()),
    "cross": given(SEQUENCE, OTHER),
    "cross padding": given(SEQUENCE, OTHER, key_padding_mask=PADDING[:, 1:], need_weights=False),
    "each head": given(SEQUENCE, average_attn_weights=False),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("masks", MASKS)
def test_attention(masks: str, dropout: float) -> None:
    args, kwargs = MASKS[masks]
    torch.manual_seed(0)
    example = {**dict(zip(("q", "kv"), args, strict=False)), **kwargs}
    model, net = twins(Attends(dropout=dropout), example)
    assert_follows(model, net, *args, **kwargs)
    for others in (MASKS["self"], MASKS["causal"]):
        assert_follows(model, net, *others[0], **others[1])
    with torch.no_grad():  # the model's own fast path
        expected, found = model.eval()(*args, **kwargs), net.eval()(*args, **kwargs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not net.islands
    assert {"attention.in_proj_weight", "attention.out_proj.weight", "fc.weight"} == {
        r.name for r in fxc.report(net).rows if r.kind == "weight" and r.rewritten
    }


@pytest.mark.parametrize(
    "options", [{"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 6, "vdim": 6}]
)
def test_attention_with_options(options: dict[str, Any]) -> None:
    model = Attends(**options)
    kv = rows(6)[:, None].expand(4, 2, 6).transpose(0, 1) if "kdim" in options else OTHER
    model, net = twins(model, (SEQUENCE, kv))
    assert not net.islands
    assert_follows(model, net, SEQUENCE, kv)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_layers(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first)
    model, net = twins(layer, SEQUENCE)
    assert not net.islands
    for twin in copies(net):
        original = copy.deepcopy(model)
        assert_follows(original, twin, SEQUENCE)
        assert_follows(original, twin, SEQUENCE, CAUSAL, is_causal=True)
        assert_follows(original, twin, OTHER)
        with torch.no_grad():
            torch.testing.assert_close(twin.eval()(SEQUENCE), original.eval()(SEQUENCE), rtol=0, atol=1e-6)
    assert sorted(r.name for r in fxc.report(net).rows if r.kind == "weight" and r.rewritten) == [
        "linear1.weight", "linear2.weight", "self_attn.in_proj_weight", "self_attn.out_proj.weight",
    ]  # fmt: skip


def test_a_padding_mask_is_met_later() -> None:
    torch.manual_seed(0)
    model, net = twins(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), SEQUENCE)
    assert_follows(model, net, SEQUENCE)
    assert_follows(model, net, SEQUENCE, src_key_padding_mask=PADDING)


class Checks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        torch._check(x.shape[0] > 3, lambda: "too few rows")
        return self.fc(x)


def test_checks_of_torch_are_kept() -> None:
    model, net = twins(Checks(), A)
    assert not net.islands
    assert_follows(model, net, A)
    with pytest.raises((InputError, RuntimeError), match=r"too few rows|where x\.shape\[0\] > 3 is True"):
        net(A[:2])


class Picky(nn.Module):
    """An island behind an argument that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.inner = nn.Linear(6, 6), Sorts()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.inner(self.fc(x))
        return y if mask is None else y.masked_fill(mask, 0.0)


class Sorts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        y = self.a(x)
        return y.flip(0) if y.sum() > 0 or flip else y


def test_none_comes_and_goes_around_an_island() -> None:
    model, net = twins(Picky(), A)
    assert set(net.islands) == {"inner"}
    assert_follows(model, net, A)
    assert_follows(model, net, A, A > 0)


def test_modes_come_and_go_around_an_island() -> None:
    class Dropped(Picky):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = super().forward(x, mask)
            return y * 2 if self.training and not self.inner.training else y

    model, net = twins(Dropped(), A)
    assert_follows(model, net, A)
    for one in (model, net):
        one.train().inner.eval()
    assert_same(model, net, A)


@pytest.mark.parametrize(("cls", "example"), [(Variadic, (A, B)), (PositionalOnly, (A, B, 2.0))])
def test_ranges_of_arguments_that_have_no_keyword(cls: type[nn.Module], example: tuple[Any, ...]) -> None:
    net = fxc.compress(cls(), "Q8(w,f)@0", example, total_steps=4)
    assert net(*example).shape == (4, 6)


def test_a_transformer() -> None:
    torch.manual_seed(0)
    model, net = twins(nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (SEQUENCE, OTHER))
    assert not net.islands
    assert_follows(model, net, SEQUENCE, OTHER)
    assert_follows(model, net, SEQUENCE, SEQUENCE, tgt_mask=CAUSAL, tgt_is_causal=True)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(SEQUENCE, OTHER), model.eval()(SEQUENCE, OTHER), rtol=0, atol=1e-6)


def test_a_dynamic_batch_and_size_without_any_assumption() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model, net = twins(model, sized(2, 5, 4))
    for size in ((2, 5, 4), (1, 9, 3), (7, 1, 1)):
        assert_same(model.eval(), net.eval(), sized(*size))


@pytest.mark.parametrize("example", [{"z": A}, (A, B, 1, "relu", 5), ()])
def test_example_inputs_that_do_not_fit_the_signature(example: Any) -> None:
    with pytest.raises(CaptureError, match=r"do not fit 'Defaults\.forward"):
        fxc.compress(Defaults(), "Q8(w)", example, total_steps=10)
