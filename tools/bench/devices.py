#!/usr/bin/env python3
"""Whether a GPU computes what the CPU does: training on both from one seed, and one trained net evaluated on both.

tools/bench/devices.py                  this machine's GPU beside its CPU, as Markdown
tools/bench/devices.py --device cpu     the CPU beside itself, where all is equal

Trained on each: the largest relative difference of the losses of a step, of the float model and of the compressed net;
the share of mask entries that are equal; the largest relative difference of scales. Devices add in another order, and
training makes more of that with each step: the float model tells by how much.

Trained on the CPU and copied: the shares of outputs (of the float model and of the net) within 1e-4 of the CPU's, and
of images put in the same class; and how many quantizers give the same bits on both, those of weights of their weight,
those of activations of random numbers.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.graph import COMPRESSION
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Quantizer

SPEC = "P0.5(w,f) -> Q8(w,f)"
STEPS = 20
RATE = 1e-3
NEAR = 1e-4
MODELS = {"resnet18": (32, 32), "mobilenet_v2": (32, 32), "vit_tiny": (16, 64)}
"""Batch and side of the images."""
EVALUATED = 8
"""Batches that trained nets are evaluated on, as one."""


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    rows = [_row(name, options.device) for name in options.models]
    print(_table(rows))
    if options.out:
        gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
        machine = {"gpu": gpu, "torch": torch.__version__}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def _row(name: str, device: str) -> dict[str, Any]:
    """All figures of a model."""
    (model, float_losses), (_, their_float_losses) = _trained(name, "cpu", None), _trained(name, device, None)
    (net, losses), (theirs, their_losses) = _trained(name, "cpu", SPEC), _trained(name, device, SPEC)
    trained_apart = {
        "float losses": _gap(torch.tensor(float_losses), torch.tensor(their_float_losses)),
        "losses": _gap(torch.tensor(losses), torch.tensor(their_losses)),
        "equal mask entries": _equal_share(_masks(net), _masks(theirs)),
        "scales": max(_gap(a, b) for a, b in zip(_scales(net), _scales(theirs), strict=True)),
    }
    near_float, same_class_float = _outputs(name, model, device)
    near, same_class = _outputs(name, net, device)
    copied = {
        "float outputs near": near_float,
        "outputs near": near,
        "float same class": same_class_float,
        "same class": same_class,
    }
    return {"model": name, **trained_apart, **copied, **_to_the_bit(net, device)}


def _trained(name: str, device: str, spec: str | None) -> tuple[Any, list[float]]:
    """A model, or a net, trained on a device, and the loss of each step."""
    torch.manual_seed(0)
    net: Any = _model(name).to(device)
    data = [(images.to(device), labels.to(device)) for images, labels in _batches(name, STEPS, 1)]
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    if spec is not None:
        net = fxc.compress(net, spec, data[0][0], total_steps=STEPS, optimizer=optimizer)
    losses = []
    for images, labels in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return net, losses


def _model(name: str) -> nn.Module:
    """A model in training that draws no random numbers, which differ between devices."""
    if name == "vit_tiny":
        import timm

        model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=MODELS[name][1])
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()  # type: ignore[no-any-return]


def _batches(name: str, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise and labels, the same at every call."""
    batch, side = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (
            torch.randn(batch, 3, side, side, generator=generator),
            torch.randint(0, 10, (batch,), generator=generator),
        )


def _masks(net: nn.Module) -> list[Tensor]:
    return [m.mask.cpu() for m in net.modules() if isinstance(m, Pruner)]


def _scales(net: nn.Module) -> list[Tensor]:
    return [m.scale.detach().cpu() for m in net.modules() if isinstance(m, Quantizer)]


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference."""
    return float(((ours - theirs).abs() / ours.abs()).max())


def _equal_share(ours: list[Tensor], theirs: list[Tensor]) -> float:
    equal = sum(int((a == b).sum()) for a, b in zip(ours, theirs, strict=True))
    return equal / sum(mask.numel() for mask in ours)


@torch.no_grad()
def _outputs(name: str, net: nn.Module, device: str) -> tuple[float, float]:
    """Of a net that was trained on the CPU the share of outputs that are near on the device, and of equal classes."""
    images = torch.cat([images for images, _ in _batches(name, EVALUATED, 2)])
    ours, twin = copy.deepcopy(net).eval(), copy.deepcopy(net).to(device).eval()
    a, b = ours(images), twin(images.to(device)).cpu()
    near = (a - b).abs() <= NEAR * a.abs()
    return float(near.float().mean()), float((a.argmax(1) == b.argmax(1)).float().mean())


@torch.no_grad()
def _to_the_bit(net: nn.Module, device: str) -> dict[str, str]:
    """How many quantizers give the same bits on the device, of how many."""
    ours, twin = copy.deepcopy(net).eval(), copy.deepcopy(net).to(device).eval()
    generator = torch.Generator().manual_seed(3)
    found: dict[str, list[bool]] = {"weights to the bit": [], "activations to the bit": []}
    for path, quantizer in ours.named_modules():
        if not isinstance(quantizer, Quantizer):
            continue
        if quantizer.of_activation:
            x = torch.randn(2**16, generator=generator) * quantizer.scale * quantizer.grid.levels / 2
        else:
            x = ours.get_parameter(path.removeprefix(f"{COMPRESSION}.").removesuffix("_quantizer")).detach()
        kind = "activations to the bit" if quantizer.of_activation else "weights to the bit"
        a, b = quantizer(x), twin.get_submodule(path)(x.to(device)).cpu()
        found[kind].append(torch.equal(a.view(torch.int32), b.view(torch.int32)))
    return {kind: f"{sum(equal)} of {len(equal)}" for kind, equal in found.items()}


def _table(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_text, row.values()))} |" for row in rows)])


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}" if value > 0.01 else f"{value:.1e}"


if __name__ == "__main__":
    main()
