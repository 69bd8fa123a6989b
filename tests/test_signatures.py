"""Calls of every shape: signatures, structures of inputs and outputs, None that comes and goes."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import Does, assert_follows, assert_same, copies, flat, twins
from layers import A, Args, B, Layer, given
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.errors import CaptureError, InputError


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


@pytest.mark.parametrize("example", [{"z": A}, (A, B, 1, "relu", 5), ()])
def test_example_inputs_that_do_not_fit_the_signature(example: Any) -> None:
    with pytest.raises(CaptureError, match=r"do not fit 'Defaults\.forward"):
        fxc.compress(Defaults(), "Q8(w)", example, total_steps=10)
