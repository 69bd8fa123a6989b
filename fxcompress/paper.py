"""The paper's arms and choices (arXiv 2110.08271) for each of its tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fxcompress.errors import SpecError
from fxcompress.fields import nearest
from fxcompress.spec import Spec

Times = tuple[str, str, str]
"""When the ramp of pruning runs, when weights are quantized, when activations are."""


@dataclass(frozen=True)
class Published:
    """What was published for a task: times as shares of training, and choices of the method.

    `late` are the times of quantization before pruning where activations are pruned too, if they differ. `window` is in
    samples. `activations` and `pruning` are fields of rules that quantize, and prune, activations.
    """

    prune_first: Times
    quantize_first: Times
    window: int
    late: Times | None = None
    activations: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    dense_edges: bool = False


_SATURATED = {"range": {"quantile": [0.0001, 0.9999]}}
_TRANSLATION: dict[str, Any] = {
    "prune_first": ("@33.3333%..48.3333%", "@93.3333%", "@96.6667%"),
    "quantize_first": ("@43.3333%..58.3333%", "@36.6667%", "@40%"),
    "window": 128,
    "dense_edges": True,
}

PUBLISHED = {
    "classification": Published(
        ("@46%..64%", "@92%", "@94%"), ("@78%..96%", "@64%", "@68%"), 2048
    ),
    "detection": Published(
        ("@33.3333%..50%", "@80%", "@83.3333%"), ("@63.3333%..80%", "@57.7778%", "@61.1111%"), 32,
        late=("@76.6667%..93.3333%", "@72.2222%", "@75.5556%"), pruning={"pattern": "channel"},
    ),
    "super-resolution": Published(
        ("@72.5%..80%", "@80%", "@85%"), ("@80%..87.5%", "@70%", "@75%"), 64, pruning={"sizes": "centre"}
    ),
    "pix2pix": Published(**_TRANSLATION, activations=_SATURATED),
    "cyclegan": Published(**_TRANSLATION, activations={**_SATURATED, "bits": 12}),
}  # fmt: skip
"""Of 250 epochs on CIFAR-10, 9 on VOC, 200 on T91, 300 on facades and horse2zebra."""


def paper_arms(task: str, sparsity: float = 0.5, bits: int = 8) -> dict[str, Spec]:
    """The paper's arms for a task of `PUBLISHED`, at its own times, which are not matched.

    Quantization alone has the times that it has after pruning. `paper_choices` adds the method's other choices. Raises
    SpecError for another task.
    """
    of = _published(task)
    arms = {"Q(w,f)": _quantized(bits, of.prune_first)}
    for letters, last in (("w", of.quantize_first), ("w,f", of.late or of.quantize_first)):
        arms[f"P({letters}) -> Q(w,f)"] = (
            f"P{sparsity}({letters}){of.prune_first[0]} -> {_quantized(bits, of.prune_first)}"
        )
        arms[f"Q(w,f) -> P({letters})"] = f"{_quantized(bits, last)} -> P{sparsity}({letters}){last[0]}"
    return {name: Spec.parse(text) for name, text in arms.items()}


def paper_choices(spec: object, task: str, *, batch_size: int, dense: Iterable[str] = ()) -> Spec:
    """`spec` with the method's choices for a task of `PUBLISHED`, times and sparsities as they are.

    Scales are powers of two of least squared error, symmetric, one a channel for weights and one a tensor for
    activations, which are looked at over the published window of samples, clipped to quantiles for image translation,
    with 12 bits for "cyclegan". Activations are pruned by channel in "detection", and by masks that serve other sizes
    in "super-resolution".

    Args:
        spec: in any form that `compress` takes.
        task: one of `PUBLISHED`.
        batch_size: samples in a step; it turns windows into steps.
        dense: patterns of names that are not pruned: a generator's first and last layers, which the paper leaves dense.

    Raises SpecError for another task, and where a generator's dense layers are not named.
    """
    of, names = _published(task), list(dense)
    if of.dense_edges and not names:
        raise SpecError(f"dense is empty; name the first and the last layer of the '{task}' generator, such as 'first'")
    window = math.ceil(of.window / batch_size)
    rules = []
    for rule in Spec.of(spec).rules:
        for target in rule.target:
            chosen = _pruned(of, target, window, names) if rule.op == "prune" else _scaled(of, target, window)
            rules.append({**rule.to_dict(), "target": target, **chosen})
    return Spec.of({"rules": rules})


def _scaled(of: Published, target: str, window: int) -> dict[str, Any]:
    least: dict[str, Any] = {"scale": "power-of-two", "range": "mse"}
    if target == "weight":
        return {**least, "per_channel": True}
    return {**least, "symmetric": True, "window": window, **of.activations}


def _pruned(of: Published, target: str, window: int, dense: list[str]) -> dict[str, Any]:
    edges = {"exclude": {"name": dense}} if dense else {}
    return edges if target == "weight" else {**edges, "window": window, **of.pruning}


def _published(task: str) -> Published:
    if task not in PUBLISHED:
        raise SpecError(f"task is {task!r}; {nearest(task, PUBLISHED)}times were published for: {', '.join(PUBLISHED)}")
    return PUBLISHED[task]


def _quantized(bits: int, times: Times) -> str:
    return f"Q{bits}(w){times[1]} -> Q{bits}(f){times[2]}"
