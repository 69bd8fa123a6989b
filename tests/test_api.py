"""`compress`: what is wrong is said at once, before anything is rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import Residual, train

import fxcompress as fxc
from fxcompress.errors import FxCompressError, SpecError
from fxcompress.masks import zeros_in
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

X = torch.randn(2, 3, 8, 8)
WEIGHTS = ["stem", "depthwise", "point", "side", "fc"]


@pytest.mark.parametrize(
    ("spec", "total_steps", "message"),
    [
        ("P0.5(w -> Q8(w)", 10, r"(?s)P0\.5\(w -> Q8\(w\)\n.*\^"),
        ({"rules": [{"op": "prune", "target": "weight", "sparcity": 0.5}]}, 10, "did you mean 'sparsity'"),
        ({"rules": [{"op": "prune", "target": "weight", "sparsity": 0.5, "criterion": "magnitud"}]}, 10, "'magnitude'"),
        ("P1.5(w)", 10, "1.5"),
        ("Q1(w)", 10, "bits"),
        ("P0.5(w)@60%..40%", 10, "60%"),
        ("P0.5(w)@20", 10, "20"),
        ("P0.5(w)", None, "total_steps"),
        ({"rules": [{"op": "prune", "target": "weight", "sparsity": 0.5, "match": {"name": "layer9.*"}}]}, 10,
         r"rule 1 .* selects no weight; .* there are 'stem.weight' \(Conv2d\)"),
        ({"rules": [{"op": "quantize", "target": "weight", "bits": 8},
                    {"op": "quantize", "target": "weight", "bits": 4, "match": {"name": "point"}}]}, 10,
         "rule 1 .* and rule 2 .* set quantize on weight 'point.weight' differently; .* 'exclude'"),
        ("Q8(w)@50% -> P0.5(w)@10%", 10, "10%"),
    ],
)  # fmt: skip
def test_a_bad_spec_gets_one_clear_error(spec: Any, total_steps: int | None, message: str) -> None:
    model = Residual()
    with pytest.raises(SpecError, match=message):
        fxc.compress(model, spec, X, total_steps=total_steps)
    assert not hasattr(model, "compression")


def test_an_unknown_target_names_the_known() -> None:
    with pytest.raises(FxCompressError, match="unknown target 'tpu'; known targets: onnxruntime"):
        fxc.compress(Residual(), "Q8(w)", X, total_steps=10, target="tpu")


def test_the_three_forms_of_a_spec_make_the_same_net(tmp_path: Path) -> None:
    spec = fxc.Spec.parse("P0.5(w) -> Q8(w,f)")
    file = tmp_path / "spec.yaml"
    file.write_text(
        "rules:\n- {op: prune, target: weight, sparsity: 0.5}\n- {op: quantize, target: [weight, activation], bits: 8}\n"
    )
    nets = [fxc.compress(Residual(), s, X, total_steps=10) for s in (spec, str(file), spec.to_dict(), file)]
    assert len({tuple(n.schedule.events) for n in nets}) == 1


def test_rules_select_by_type_and_name() -> None:
    rule = {"op": "prune", "target": "weight", "sparsity": 0.5, "match": {"type": "Conv2d"}, "exclude": {"name": "s*"}}
    net = fxc.compress(Residual(), {"rules": [rule]}, X, total_steps=10)
    pruned = {name.removeprefix("compression.") for name, m in net.named_modules() if isinstance(m, Pruner)}
    assert pruned == {"depthwise.weight_pruner", "point.weight_pruner"}


def test_an_activation_is_selected_by_any_module_of_its_unit() -> None:
    rules = [
        {"op": "quantize", "target": "activation", "bits": 8, "match": {"name": name}} for name in ("depthwise", "act")
    ]
    for rule in rules:
        net = fxc.compress(Residual(), {"rules": [rule]}, X, total_steps=10)
        assert [n for n, m in net.named_modules() if isinstance(m, Quantizer)] == ["compression.act_quantizer"]


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.01)]
)
def test_masked_weights_stay_zero_whatever_the_optimizer_does(make: Any) -> None:
    net = fxc.compress(Residual(), "Q8(w)@1 -> P0.5(w)@2..4", X, total_steps=12)
    optimizer = make(net.parameters())
    net.schedule.attach(optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    for name in WEIGHTS:
        pruner = net.get_submodule(f"compression.{name}.weight_pruner")
        weight = net.get_parameter(f"{name}.weight")
        assert int((~pruner.mask).sum()) == zeros_in(0.5, weight.numel())
        assert not pruner(weight)[~pruner.mask].any()


def test_activations_have_exact_zeros_in_their_masks() -> None:
    net = fxc.compress(Residual(), "P0.5(f) -> Q8(f)", X, total_steps=10)
    train(net, 10, (4, 3, 8, 8))
    seen: dict[str, torch.Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, Pruner):
            module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
    net.eval()(X)
    assert len(seen) == 4
    for name, value in seen.items():
        mask = net.get_submodule(name).mask
        assert int((~mask).sum()) == zeros_in(0.5, mask.numel())
        assert not value[:, ~mask].any()
