"""torch.ao's FX graph mode: its default qconfigs at full 8 bits, and the same with ranges of fewer integers.

For less than 8 bits there is no ready qconfig and no kernel: the fake-quantized net is measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from accuracy_parts.data import Task
from accuracy_parts.models import EDGES
from accuracy_parts.training import Work, calibration_batches, fine_tune

ENGINE = "onednn"
"""The default engine's qconfig keeps activations to 7 bits; this one has all 8."""


def quantize(model: nn.Module, teacher: nn.Module, task: Task, work: Work, settings: Mapping[str, str]) -> Any:
    """The quantized net in evaluation mode."""
    warnings.filterwarnings("ignore")
    batches = calibration_batches(task)
    if work.bits == 8:
        torch.backends.quantized.engine = ENGINE
        prepared = prepare_fx(model.eval(), tq.get_default_qconfig_mapping(ENGINE), (batches[0],))
        _run(prepared, batches)
        return convert_fx(prepared)
    qconfigs = tq.QConfigMapping().set_global(_qconfig(work.bits))
    for name in EDGES[work.model]:
        qconfigs.set_module_name(name, _qconfig(work.edge_bits))
    prepared = prepare_qat_fx(model.train(), qconfigs, (batches[0],)).eval()
    prepared.apply(tq.disable_fake_quant)
    _run(prepared, batches)
    prepared.apply(tq.enable_fake_quant)
    fine_tune(prepared, work.recipe.optimizer(prepared.parameters()), teacher, task, work)
    return prepared.apply(tq.disable_observer)


def _qconfig(bits: int) -> Any:
    """torch.ao's default of quantization-aware training, with the integers of `bits`."""
    return tq.QConfig(
        activation=tq.FakeQuantize.with_args(
            observer=tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=2**bits - 1, dtype=torch.quint8
        ),
        weight=tq.FakeQuantize.with_args(
            observer=tq.MovingAveragePerChannelMinMaxObserver,
            quant_min=-(2 ** (bits - 1)),
            quant_max=2 ** (bits - 1) - 1,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
        ),
    )


@torch.no_grad()
def _run(net: nn.Module, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        net(batch)


def export(net: Any, file: Path, task: Task) -> str:
    """There is no ONNX file of what FX graph mode makes."""
    raise NotImplementedError("FX graph mode has no ONNX export of its integers")


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"torch": torch.__version__, "api": "torch.ao.quantization.quantize_fx"}
