"""One real run of a model on its example inputs, to learn how an island's modules are called and what they yield."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxcompress.draws import kept
from fxcompress.errors import CaptureError
from fxcompress.mirror import mirror, without_hooks
from fxcompress.snapshot import Snapshot


@dataclass
class Call:
    """One call of a module: arguments, and what it yields once it is done."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


@dataclass
class Records:
    """All calls of all modules by path, in order."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    entered: str = ""


def observe(
    root: nn.Module,
    path: str,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    flags: Mapping[str, bool],
    like: Callable[[Any], Any],
) -> Records:
    """Run the module of `root` at `path` on positional and keyword `arguments` in the modes `flags`, and record every
    call through `like`.

    Buffers, random states and attributes of the model are left as they were. Raises CaptureError if the model fails.
    """
    twin = without_hooks(mirror(root))
    records = Records()
    for name, module in twin.named_modules():
        module.training = flags[f"{name}.training".removeprefix(".")]
        _record(module, name, records, like)
    args, kwargs = arguments
    before = Snapshot(twin)
    try:
        with kept(root), torch.enable_grad():
            twin.get_submodule(path)(*args, **kwargs)
    except Exception as error:
        place = f"'{records.entered}'" if records.entered else "the model's own forward"
        what = f"{type(error).__name__} at {place}: {(str(error).splitlines() or [''])[0]}"
        raise CaptureError(
            f"the example inputs do not fit the model: {what}; "
            "pass inputs of the shape and dtype that the model is called with"
        ) from error
    finally:
        before.restore()  # copies of modules share what their attributes hold
    return records


def _record(module: nn.Module, path: str, records: Records, like: Callable[[Any], Any]) -> None:
    running: list[Call] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        records.entered = path
        args, kwargs = like((args, kwargs))
        running.append(Call(args, kwargs))
        records.calls.setdefault(path, []).append(running[-1])

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        running.pop().output = like(output)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)
