"""What the demo measures of a net and of a file: accuracy, zeros, latency."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from fxcompress.demo.data import Digits
from fxcompress.export import strip_traces
from fxcompress.module import CompressedModule
from fxcompress.runtime import latencies, session

OPSET = 21
ROUNDS = 200


def accuracy(net: nn.Module, data: Digits) -> float:
    """Percent of the test images that the net sorts right."""
    net.eval()
    with torch.no_grad():
        return _percent_right(net(data.test_images), data)


def accuracy_of_file(path: Path, data: Digits) -> float:
    """Percent of the test images that the file sorts right in ONNX Runtime."""
    runtime = session(path, threads=1)
    return _percent_right(torch.from_numpy(runtime.run(None, _feed(runtime, data.test_images))[0]), data)


def zeros(net: CompressedModule, images: Tensor) -> dict[str, float]:
    """Percent of exact zeros in the weights and activations that the spec takes, as the net computes them on `images`.

    Activations count the zeros of ReLU as well as those of masks; a tensor is looked at behind its last pruner or
    quantizer.
    """
    count = {"weight": 0, "activation": 0}
    total = dict(count)

    def look(kind: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            count[kind] += int((output == 0).sum())
            total[kind] += output.numel()

        return hook

    last = _last_on_each_tensor(net)
    handles = [net.get_submodule(path).register_forward_hook(look(kind)) for path, kind in last.items()]
    try:
        net.eval()
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return {kind: 100 * count[kind] / max(total[kind], 1) for kind in count}


def masked(net: CompressedModule) -> dict[str, float]:
    """Percent of elements under the zeros of masks, over the tensors that have one."""
    pruned = {event.path: event.kind for event in net.schedule.events if event.action == "prune"}
    shares = {}
    for kind in ("weight", "activation"):
        masks = [net.get_buffer(f"{path}.mask") for path, of in pruned.items() if of == kind]
        kept = sum(int(mask.sum()) for mask in masks)
        shares[kind] = 100 * (1 - kept / sum(mask.numel() for mask in masks)) if masks else 0.0
    return shares


def export_float(model: nn.Module, path: Path, images: Tensor) -> None:
    """Write the float model by PyTorch's own exporter, without its traces, as the compressed file is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter, about its own code
        program = torch.onnx.export(
            copy.deepcopy(model).eval(),
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    strip_traces(program.model)
    ir.save(program.model, path)


def milliseconds(paths: Mapping[str, Path], images: Tensor) -> dict[str, float]:
    """Median milliseconds of a run on `images` in ONNX Runtime on one thread, the files taking turns."""
    seconds = latencies(list(paths.values()), {"images": images.numpy()}, ROUNDS, threads=1)
    return {name: 1000 * spent for name, spent in zip(paths, seconds, strict=True)}


def _last_on_each_tensor(net: CompressedModule) -> dict[str, str]:
    found: dict[tuple[str, str], str] = {}
    for event in net.schedule.events:
        if event.action == "quantize" or (event.kind, event.tensor) not in found:
            found[event.kind, event.tensor] = event.path
    return {path: kind for (kind, _), path in found.items()}


def _percent_right(logits: Tensor, data: Digits) -> float:
    return 100 * float((logits.argmax(1) == data.test_classes).double().mean())


def _feed(runtime: Any, images: Tensor) -> dict[str, Any]:
    return {runtime.get_inputs()[0].name: images.numpy()}
