"""What `compress` does not take, found before anything happens, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import FakeQuantizeBase
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.rules import Quantize
from fxcompress.spec import Spec

_QUANTIZED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.quantizable", "torch.ao.nn.qat",
    "torch.ao.nn.intrinsic.qat", "torch.ao.nn.sparse.quantized",
)  # fmt: skip


def refuse_unsuitable(model: Any, spec: Spec) -> None:
    """Raise CaptureError if `model` is nothing that can be captured, or that `spec` cannot act on."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got {model!r}; pass the model itself")
    if isinstance(model, GraphModule) and hasattr(model, "schedule"):
        raise CaptureError("the model is already compressed; pass the original model and one spec with all rules")
    for what, mend in (*_modules_at_fault(model), *_tensors_at_fault(model)):
        raise CaptureError(f"{what}; {mend}")
    other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if other and any(isinstance(rule, Quantize) for rule in spec.rules):
        raise CaptureError(
            f"the model has parameters of {', '.join(map(str, other))}, and scales are float32; call model.float() "
            "first, and train in half precision with torch.autocast around the net"
        )


def _is_exported(module: nn.Module) -> bool:
    if not isinstance(module, GraphModule):
        return False
    return any(isinstance(n.target, torch._ops.OpOverload) for n in module.graph.nodes)


def refuse_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise CaptureError if an example input holds no data."""
    for name, value in inputs.items():
        if any(isinstance(t, Tensor) and t.is_meta for t in pytree.tree_leaves(value)):
            raise CaptureError(
                f"example input '{name}' is on device 'meta', where tensors have no data; pass one with data"
            )


def _modules_at_fault(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        where, name = f"'{path}' of the model" if path else "the model", type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            yield f"{where} is a scripted module ('{module.original_name}')", "pass the eager model it was made from"
        if hasattr(module, "_orig_mod") and name == "OptimizedModule":
            yield f"{where} is compiled already", "compress the model first, then call torch.compile on the net"
        if _is_exported(module):
            yield f"{where} is an exported graph of low-level operators", "pass the eager model it was made from"
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            yield f"{where} is wrapped in {name}", "compress the model inside ('.module'), then wrap the net"
        if isinstance(module, FakeQuantizeBase) or (
            type(module).__module__.startswith(_QUANTIZED) and not isinstance(module, FloatFunctional)
        ):
            yield f"{where} is quantized already ('{name}' of torch.ao)", "pass the float model"


def _tensors_at_fault(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
            yield f"'{name}' has no shape yet", "call the model once on real inputs before compressing it"
        elif tensor.is_meta:
            yield f"'{name}' is on device 'meta', where tensors have no data", "load the model's weights first"
        elif type(tensor) not in (nn.Parameter, Tensor, nn.Buffer):
            yield f"'{name}' is a {type(tensor).__name__}, not a plain tensor", "pass the model with plain parameters"
