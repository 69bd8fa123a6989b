"""The verbs that edit a graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import Does, Fc, Mlp, Residual, canonical, captured, image, rows, seeded, text
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.graph import (
    add_module,
    bypass,
    container,
    drop_dead_code,
    has_module,
    insert_after,
    insert_constants,
    insert_function_after,
    insert_function_before,
    module_of,
    modules_of_type,
    replace,
    site,
    tensor_at,
    writes_in_place,
)
from fxcompress.render import render


def node(gm: GraphModule, name: str) -> Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def test_insert_after_takes_over_all_users() -> None:
    net = canonical(seeded(Residual), image())
    insert_after(net, node(net, "x"), "compression.x_probe", nn.Identity())
    net.graph.lint()
    assert "%conv = conv2d(%x_probe, %conv_weight," in render(net)
    assert "%add_ = add(%conv, %x_probe)" in render(net)
    assert render(net).count("(%x)") == 1


def test_insert_after_keeps_shape_and_site() -> None:
    net = canonical(seeded(Mlp), rows())
    new = insert_after(net, node(net, "relu"), "compression.relu_probe", nn.Identity())
    assert (new.name, site(new), tuple(new.meta["tensor_meta"].shape)) == ("relu_probe", "relu", (4, 4))


def test_insert_after_uses_the_module_that_stands_there() -> None:
    net = canonical(seeded(Mlp), rows())
    first, second = nn.Identity(), nn.Identity()
    insert_after(net, node(net, "fc1"), "compression.probe", first)
    insert_after(net, node(net, "relu"), "compression.probe", second)
    assert net.get_submodule("compression.probe") is first


def test_insert_after_an_input_leaves_the_inputs_together() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    net = canonical(Sum(), (rows(), rows()))
    insert_after(net, node(net, "x"), "compression.x_probe", nn.Identity())
    expected = """
        input %x
        input %y
        %x_probe = compression.x_probe:Identity(%x)
        %add = add(%x_probe, %y)
        output %add
    """
    assert render(net) == text(expected)


def test_insert_function_after_stands_right_behind_and_takes_over_all_users() -> None:
    net = canonical(seeded(Mlp), rows())
    new = insert_function_after(net, node(net, "relu"), torch.mul, (2, node(net, "fc1")), "relu_twice")
    net.graph.lint()
    assert render(net).splitlines()[4:7] == [
        "%relu = relu:ReLU(%fc1)",
        "%relu_twice = mul(%relu, 2, %fc1)",
        "%drop = drop:Dropout(%relu_twice)",
    ]
    assert (site(new), tuple(new.meta["tensor_meta"].shape)) == ("relu", (4, 4))


def test_insert_function_before_stands_right_before_and_changes_no_user() -> None:
    net = canonical(seeded(Fc), rows())
    new = insert_function_before(net, node(net, "fc"), torch.mul, (node(net, "x"), 2), "twice")
    net.graph.lint()
    assert (new.next, [*new.users], site(new)) == (node(net, "fc"), [], "twice")
    assert render(net).splitlines()[3:5] == ["%twice = mul(%x, 2)", "%fc = linear(%x, %fc_weight, %fc_bias)"]


def test_a_name_that_is_taken_gets_a_number() -> None:
    net = canonical(seeded(Fc), rows())
    new = insert_function_before(net, node(net, "fc"), torch.neg, (node(net, "fc_bias"),), "fc_bias")
    assert new.name == "fc_bias_1"


def test_insert_constants_stores_buffers_and_reads_them_before_a_node() -> None:
    net = canonical(seeded(Fc), rows())
    [new] = insert_constants(net, node(net, "fc"), "fc.extra", {"scale": torch.ones(3)})
    assert (new.op, new.target, new.next.name) == ("get_attr", "fc.extra.scale", "fc")
    assert torch.equal(net.get_buffer("fc.extra.scale"), torch.ones(3))
    assert new.meta["tensor_meta"].shape == (3,)


def test_insert_constants_at_the_root() -> None:
    net = canonical(seeded(Fc), rows())
    [new] = insert_constants(net, node(net, "fc"), "", {"scale": torch.ones(3)})
    net.graph.lint()
    assert (new.target, new.name) == ("scale", "scale")
    assert torch.equal(net.get_buffer("scale"), torch.ones(3))


def test_insert_constants_stores_the_same_once() -> None:
    net = canonical(seeded(Fc), rows())
    nodes = [insert_constants(net, node(net, "fc"), "fc", {"scale": torch.ones(3)})[0] for _ in range(2)]
    assert [(n.name, n.target) for n in nodes] == [("fc_scale", "fc.scale"), ("fc_scale_1", "fc.scale")]


@pytest.mark.parametrize("own", [torch.zeros(3), torch.ones(3).double(), nn.Parameter(torch.zeros(3)), "text"])
def test_insert_constants_leaves_what_has_the_name_already(own: Tensor | str) -> None:
    model = seeded(Fc)
    if isinstance(own, Tensor) and not isinstance(own, nn.Parameter):
        model.fc.register_buffer("scale", own)
    else:
        model.fc.scale = own
    net = canonical(model, rows())
    [new] = insert_constants(net, node(net, "fc"), "fc", {"scale": torch.ones(3)})
    assert new.target == "fc.scale_constant"
    assert net.fc.scale is own
    assert torch.equal(tensor_at(net, "fc.scale_constant"), torch.ones(3))


def test_replace_keeps_name_users_and_meta() -> None:
    net = canonical(seeded(Mlp), rows())
    relu = node(net, "relu")
    replace(relu, torch.neg, (node(net, "fc1"),))
    net.graph.lint()
    assert (relu.name, site(relu), [u.name for u in relu.users]) == ("relu", "relu", ["drop"])
    assert tuple(relu.meta["tensor_meta"].shape) == (4, 4)
    assert "%relu = neg(%fc1)" in render(net).splitlines()
    assert "relu:ReLU" not in render(net)


def test_replace_takes_new_arguments_and_no_old_keywords() -> None:
    net = canonical(Does(lambda m, x: torch.nn.functional.softmax(m.layer(x), dim=1)), rows())
    old, layer = node(net, "softmax"), node(net, "layer")
    replace(old, torch.mul, (node(net, "x"), 2))
    assert (old.args, old.kwargs, [*layer.users]) == ((node(net, "x"), 2), {}, [])
    assert [*net.graph.find_nodes(op="call_function", target=torch.mul)] == [old]
    net.recompile()
    assert torch.equal(net(rows()), rows() * 2)


def add_to(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return x


def half_of(x: Tensor, y: Tensor) -> Tensor:
    y /= 2
    return x


@pytest.mark.parametrize(
    ("unused", "name"),
    [
        (lambda x, y: y.add_(1), "add_"),
        (lambda x, y: torch.relu_(y), "relu"),
        (lambda x, y: nn.functional.leaky_relu(y, 0.5, True), "leaky_relu"),
        (lambda x, y: torch.neg(x, out=y), "neg"),
        (add_to, "iadd"),
        (half_of, "itruediv"),
    ],
)
def test_drop_dead_code_keeps_what_writes_in_place(unused: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
    net = canonical(Does(lambda m, x: (y := x * 2, unused(x, y), y)[-1]), rows())
    before = render(net)
    assert [n.name for n in net.graph.nodes if writes_in_place(net, n)] == [name]
    assert drop_dead_code(net) is False
    assert render(net) == before
    assert torch.equal(net(rows()), (y := rows() * 2, unused(rows(), y), y)[-1])


def test_drop_dead_code_keeps_a_module_that_writes_in_place() -> None:
    net = canonical(Does(lambda m, x: (y := x * 2, m.layer(y), y)[-1], nn.ReLU(inplace=True)), rows())
    assert drop_dead_code(net) is False
    assert "%layer = layer:ReLU(%mul)" in render(net)
    assert torch.equal(net(rows()), torch.relu(rows() * 2))


@pytest.mark.parametrize(
    "unused",
    [
        lambda x, y: y.add(1),
        lambda x, y: torch.relu(y),
        lambda x, y: nn.functional.leaky_relu(y, 0.5, False),
        lambda x, y: torch.neg(x, out=None),
        lambda x, y: torch.neg(y[0]),
    ],
)
def test_drop_dead_code_removes_what_nothing_uses(unused: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = canonical(Does(lambda m, x: (y := x * 2, unused(x, y), y)[-1]), rows())
    assert not any(writes_in_place(net, n) for n in net.graph.nodes)
    assert drop_dead_code(net) is True
    assert render(net) == "input %x\n%mul = mul(%x, 2)\noutput %mul"
    assert drop_dead_code(net) is False


def test_capture_drops_reads_that_nothing_uses() -> None:
    net = canonical(Does(lambda m, x: (y := x * 2, y[0], y.shape[0] + 1, y)[-1]), rows())
    assert render(net) == "input %x\n%mul = mul(%x, 2)\noutput %mul"
    assert drop_dead_code(net) is False


def test_drop_dead_code_removes_modules_and_what_only_they_used() -> None:
    net = canonical(seeded(Mlp), rows())
    net.graph.output_node().args = (node(net, "x"),)
    assert drop_dead_code(net) is True
    assert render(net) == "input %x\noutput %x"


def test_bypass_gives_users_the_input() -> None:
    net = canonical(seeded(Mlp), rows())
    bypass(net, node(net, "drop"))
    assert "drop" not in render(net)
    assert "%fc2 = linear(%relu, %fc2_weight, %fc2_bias)" in render(net)


def test_a_site_is_a_path_or_else_the_node_s_name() -> None:
    net = captured(nn.Sequential(nn.Sequential(seeded(Fc))), rows())
    assert [site(n) for n in net.graph.nodes] == ["input", "0.0.fc.weight", "0.0.fc.bias", "0.0.fc", "output"]
    fresh = net.graph.call_function(torch.neg, (node(net, "_0_0_fc"),))
    assert site(fresh) == fresh.name


def test_module_of_and_tensor_at_follow_targets() -> None:
    net = canonical(seeded(Mlp), rows())
    assert module_of(net, node(net, "relu")) is net.relu
    assert module_of(net, node(net, "fc1")) is None
    assert module_of(net, None) is None
    assert tensor_at(net, "fc1.weight") is net.fc1.weight


def test_modules_are_made_on_the_way_and_found_by_path() -> None:
    root = nn.Module()
    leaf = nn.ReLU()
    add_module(root, "a.b.leaf", leaf)
    assert root.get_submodule("a.b.leaf") is leaf
    assert container(root, "a.b") is root.get_submodule("a.b")
    assert container(root, "") is root
    assert has_module(root, "a.b.leaf") and not has_module(root, "a.c") and not has_module(root, "leaf")
    assert [path for path, _ in modules_of_type(root, nn.ReLU, nn.Tanh)] == ["a.b.leaf"]
