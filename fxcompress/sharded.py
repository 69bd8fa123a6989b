"""Nets whose parameters `fully_shard` (FSDP2) has split over ranks: whole tensors, and groups that no call gathers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxcompress.errors import ExportError, ScheduleError


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together where it is split over ranks, all of which have to ask."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def write(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor, or this rank's part of it into one that is split."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        parts: Any = tensor
        value = distribute_tensor(value, parts.device_mesh, parts.placements, src_data_rank=None)
    tensor.copy_(value)


def gather(net: Any) -> None:
    """Make parameters of groups inside of `net` whole for a forward.

    The graph reads them from the net and calls none of the modules that `fully_shard` was given, but the net. The net's
    own hook splits them again after backward.
    """
    for group in _groups(net):
        group.unshard()


def split(net: Any) -> None:
    """Split all parameters again after a forward that no backward follows."""
    if is_sharded(net):
        for group in (net, *_groups(net)):
            group.reshard()


def is_sharded(net: Any) -> bool:
    """Whether `fully_shard` was given the module."""
    return hasattr(type(net), "unshard")


def refuse_parts(net: Any) -> None:
    """Raise ScheduleError where `fully_shard` was given parts of the net and not the net."""
    if not is_sharded(net) and (parts := [path for path, m in net.named_modules() if is_sharded(m)]):
        raise ScheduleError(
            f"fully_shard was given '{parts[0]}' of the net, whose graph reads parameters from the net and calls no "
            "such module; call fully_shard(net) after its parts"
        )


def refuse_sharded(net: Any, what: str) -> None:
    """Raise ExportError where parameters are split over ranks."""
    found = next((name for name, p in net.named_parameters() if hasattr(p, "full_tensor")), None)
    if found is not None:
        raise ExportError(
            f"'{found}' is split over ranks by fully_shard, and {what} takes whole tensors; gather the state with "
            "get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)) on all ranks, and load it into "
            "a net that is compressed from the model itself"
        )


def _groups(net: Any) -> list[Any]:
    if "_groups" not in net.__dict__:
        inside = ((path, m) for path, m in net.named_modules() if path and path not in net.regions)
        net.__dict__["_groups"] = [m for _, m in inside if is_sharded(m)]
    return net.__dict__["_groups"]  # type: ignore[no-any-return]
