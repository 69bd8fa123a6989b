"""What is measured on one model of the zoo."""

from __future__ import annotations

import copy
import random
import resource
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fxc
from fxcompress.calls import bind
from fxcompress.graph import module_of
from fxcompress.operators import input_of, is_constant, is_product, weight_of
from fxcompress.quantizer import Quantizer
from fxcompress.report import rows_of
from fxcompress.sites import sources, tail

SPEC = "P0.5(w) -> Q8(w,f)"


@dataclass
class Row:
    """One model: `train` and `eval` say whether outputs and gradients are the model's, bit for bit; shares are of
    multiply-accumulates with weights and of activations that rewritten layers read; `factor` is the time of `compress`
    in forward passes, `memory_mb` what it took at its peak."""

    library: str
    name: str
    captured: bool = False
    train: str = ""
    eval: str = ""
    weights: float = 0.0
    edges: float = 0.0
    factor: float = 0.0
    seconds: float = 0.0
    memory_mb: float = 0.0
    islands: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def line(self) -> str:
        """The row as one line of text."""
        if not self.captured:
            return f"{self.library}/{self.name}: not captured: {self.error[:200]}"
        shares = f"{100 * self.weights:.1f} % of weight MACs, {100 * self.edges:.1f} % of edges"
        islands = f", islands: {self.islands}" if self.islands else ""
        failed = f", then {self.error[:200]}" if self.error else ""
        return (
            f"{self.library}/{self.name}: train {self.train}, eval {self.eval}, {shares}, {self.seconds:.1f} s = "
            f"{self.factor:.1f} forward passes{islands}{failed}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def measure(row: Row, model: nn.Module, inputs: Any) -> None:
    """Fill `row` with what holds of `model`, compressed for `inputs`."""
    reference = copy.deepcopy(model)
    forward = statistics.median(_timed(reference.eval(), inputs) for _ in range(3))
    before, start = _peak(), time.perf_counter()
    net = fxc.compress(model.train(), SPEC, inputs, total_steps=100)
    row.seconds = time.perf_counter() - start
    row.factor, row.memory_mb, row.captured = row.seconds / forward, _peak() - before, True
    row.islands = {path or "(the model)": island.reason for path, island in net.islands.items()}
    row.weights, row.edges, row.left = *_shares(net, _counted(reference, inputs)), _left(net)
    for mode in ("train", "eval", "train"):
        setattr(row, mode, same(reference, net, inputs, mode == "train"))
    row.eval = f"{row.eval}, copy {same(reference, copy.deepcopy(net), inputs, False)}"


def same(model: nn.Module, net: nn.Module, inputs: Any, training: bool) -> str:
    """Whether both give the same outputs and gradients: "equal", or how far they are apart."""
    try:
        expected, gradients = _run(model.train(training), inputs)
    except Exception as error:
        return f"the model fails ({type(error).__name__})"
    found, theirs = _run(net.train(training), inputs)
    if len(expected) != len(found):
        return "other outputs"
    off = max((_distance(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    off_gradients = max((_distance(gradients[n], theirs[n]) for n in gradients), default=0.0)
    if off or off_gradients:
        return f"off by {off:.1e}, gradients {off_gradients:.1e}"
    return "equal"


def _run(model: nn.Module, inputs: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model.zero_grad(set_to_none=True)
    outputs = [t for t in pytree.tree_leaves(call(model, copy.deepcopy(inputs))) if isinstance(t, Tensor)]
    losses = [t.float().sum() for t in outputs if t.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on its inputs, positional or by keyword."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if a.shape != b.shape:
        return float("inf")
    if torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan()):
        return 0.0
    scale = a.abs().max().clamp_min(1e-12)
    return float(((a - b).abs().max() / scale).detach())


def _shares(net: fxc.CompressedModule, counted: dict[str, float]) -> tuple[float, float]:
    """Of multiply-accumulates with weights (as the model's own layers count them, and ours where it has none) and of
    the activations that products read."""
    weights = [r for r in rows_of(net) if r.kind == "weight"]
    counted |= {r.name: r.macs for r in weights if r.name not in counted}
    rewritten = {r.name for r in weights if r.rewritten}
    done = sum(macs for name, macs in counted.items() if name in rewritten)
    edges = [
        isinstance(module_of(gm, tail(gm, source)), Quantizer)
        for gm in net.views()
        for node in gm.graph.nodes
        if is_product(node) and is_constant(weight_of(node))
        for source in sources(gm, input_of(node))
    ]
    return done / max(sum(counted.values()), 1), sum(edges) / max(len(edges), 1)


def _counted(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Multiply-accumulates of all layers in one run of the model itself, by the name of their weight."""
    counted: dict[str, float] = defaultdict(float)
    names = {id(p): name for name, p in model.named_parameters()}  # a tied weight has one

    def count(path: str, layer: nn.Module) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            weight = module.weight
            name = names.get(id(weight), f"{path}.weight".removeprefix("."))
            counted[name] += output.numel() * weight.numel() / weight.shape[0]

        return layer.register_forward_hook(hook)

    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [count(path, m) for path, m in model.named_modules(remove_duplicate=True) if isinstance(m, layers)]
    with torch.no_grad():
        call(model.eval(), copy.deepcopy(inputs))
    for handle in handles:
        handle.remove()
    first = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    return {name: macs / len(first) for name, macs in counted.items()}


def _left(net: fxc.CompressedModule) -> dict[str, str]:
    return {r.name: r.reason for r in rows_of(net) if r.kind == "weight" and not r.rewritten}


def _timed(model: nn.Module, inputs: Any) -> float:
    bind(model, inputs)
    start = time.perf_counter()
    with torch.no_grad():
        call(model, copy.deepcopy(inputs))
    return time.perf_counter() - start


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
