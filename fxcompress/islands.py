"""Which modules are opened while tracing, which stay calls, and which run as written: islands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fxcompress.operators import STOCHASTIC_DEPTHS
from fxcompress.symbols import DataDependent, Untraceable

WEIGHT_OWNING = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.Embedding,
)  # fmt: skip
OPENED = (
    *WEIGHT_OWNING, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict,
    nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder,
    nn.TransformerDecoderLayer, nn.Bilinear, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
"""`torch.nn` modules whose forward is captured; the others stay calls."""


@dataclass(frozen=True)
class Island:
    """A module that runs as written, and why. `depends_on_data`: what it yields may have other shapes at every call.
    `hooked`: only its hooks keep it from being part of a graph, its own forward is one."""

    cls: str
    reason: str
    depends_on_data: bool = False
    hooked: bool = False

    @classmethod
    def of(cls, module: nn.Module, error: Exception) -> Island:
        """The island that a module becomes by an error while it is traced."""
        text = str(error).strip().splitlines()
        reason = str(error) if isinstance(error, Untraceable) else f"{type(error).__name__}: {text[0] if text else ''}"
        return cls(type(module).__name__, reason, isinstance(error, DataDependent))


def unexportable(islands: Mapping[str, Island]) -> list[str]:
    """The islands that no exported graph can hold, because what they do depends on data or they are the whole model:
    path, class and reason."""
    found = {path or "the whole model": i for path, i in islands.items() if i.depends_on_data or not path}
    return [f"'{path}' ({i.cls}: {i.reason})" for path, i in found.items()]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module stays a call: torch's own that hold no weight of a product, and stochastic depth."""
    cls = type(module)
    from_torch = cls.__module__.startswith("torch.nn.modules")
    return (from_torch and not isinstance(module, OPENED)) or cls.__name__.endswith(STOCHASTIC_DEPTHS)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs more than its forward and what torch's own weight norms need."""
    pre = [h for h in module._forward_pre_hooks.values() if not hasattr(h, "compute_weight")]
    return bool(pre or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
