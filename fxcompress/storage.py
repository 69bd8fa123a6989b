"""Save a compressed net and load it again: tensors as safetensors, the rest as JSON beside them, nothing pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxcompress.api import compressed
from fxcompress.calls import bind
from fxcompress.errors import ExportError
from fxcompress.files import whole, writable
from fxcompress.module import CompressedModule
from fxcompress.sharded import refuse_sharded
from fxcompress.shrinking import repeat
from fxcompress.spec import Spec
from fxcompress.timing import Length

FORM = "fxcompress-1"
_STATE, _INPUT = "state.", "input."


def save(net: CompressedModule, path: str | os.PathLike[str]) -> None:
    """Write all that `load` needs to make `net` again from its model: spec, schedule, example inputs and `state_dict`.

    The file is a safetensors file, on any device, whole or not at all. Tensors under several names are stored once.
    Raises ExportError if `net` is no compressed net or the path cannot be written.
    """
    if not isinstance(net, CompressedModule):
        raise ExportError(f"expected what fxcompress.compress returns, got {type(net).__name__}; use torch.save")
    refuse_sharded(net, "save")
    target = writable(path)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    for name, value in net.state_dict(keep_vars=True).items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        if place in known:
            aliases[name] = known[place]
        else:
            known[place] = name
            tensors[f"{_STATE}{name}"] = value.detach().cpu().contiguous().clone()
    inputs = {name: _to_json(value, tensors) for name, value in net.schedule.example_inputs.items()}
    about = {
        "form": FORM,
        "spec": str(net.spec),
        "length": json.dumps(net.schedule.length),
        "target": net.schedule.target,
        "aliases": json.dumps(aliases),
        "inputs": json.dumps(inputs),
        "removals": json.dumps(net.removals),
    }
    with whole(target) as file:
        save_file(tensors, file, about)


def load(path: str | os.PathLike[str], model: nn.Module, example_inputs: Any = None) -> CompressedModule:
    """Compress `model` (the class that was compressed, with any weights) as the net in the file was, with its state.

    `example_inputs`: as for `compress`; needed only where the file could not hold them (objects of the model's own).
    Raises ExportError if the file is none of `save`'s, or `model` is not what was compressed.
    """
    about, tensors = _read(Path(path))
    if example_inputs is not None:
        inputs = bind(model, example_inputs)
    else:
        stored = json.loads(about["inputs"])
        if lost := [name for name, value in stored.items() if _is_lost(value)]:
            raise ExportError(
                f"'{path}' does not hold the example input '{lost[0]}' ({_is_lost(stored[lost[0]])}); pass "
                "example_inputs= to load"
            )
        inputs = {name: _from_json(value, tensors) for name, value in stored.items()}
    spec = Spec.parse(about["spec"])
    net = compressed(model, spec, inputs, Length(*json.loads(about["length"])), about["target"])
    repeat(net, json.loads(about.get("removals", "[]")))
    state = {k.removeprefix(_STATE): v for k, v in tensors.items() if k.startswith(_STATE)}
    state |= {name: state[other] for name, other in json.loads(about["aliases"]).items()}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ExportError(
            f"'{path}' was not saved from such a {type(model).__name__}: {reason}; pass the model that was compressed"
        ) from None
    return net


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("form") != FORM:
                raise ExportError(f"'{path}' was not written by fxcompress.save; its form is {about.get('form')!r}")
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ExportError(f"cannot read '{path}': {error}; pass a file that fxcompress.save wrote") from None


def _to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data for an input, its tensors put into `tensors`; {"lost": type} for what JSON has no word for."""
    if isinstance(value, Tensor):
        name = f"{_INPUT}{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_to_json(item, tensors) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _to_json(item, tensors) for key, item in value.items()}}
    is_plain = value is None or type(value) in (bool, int, float, str)
    return {"value": value} if is_plain else {"lost": type(value).__name__}


def _from_json(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    [(kind, inside)] = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "dict":
        return {key: _from_json(item, tensors) for key, item in inside.items()}
    if kind in ("list", "tuple"):
        items = [_from_json(item, tensors) for item in inside]
        return items if kind == "list" else tuple(items)
    return inside


def _is_lost(value: Mapping[str, Any]) -> str:
    """The type of an input, or of something in it, that is not in the file; "" if all is."""
    [(kind, inside)] = value.items()
    if kind == "lost":
        return str(inside)
    parts = inside.values() if kind == "dict" else inside if kind in ("list", "tuple") else ()
    return next(filter(None, map(_is_lost, parts)), "")
