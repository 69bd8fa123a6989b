"""Several masks of one network: kept under names, and one of them switched on (one subnetwork a task)."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from fxcompress.errors import InputError
from fxcompress.graph import modules_of_type
from fxcompress.pruner import Pruner


def keep_masks(net: nn.Module, name: str) -> None:
    """Keep the masks as they are now under `name`, as buffers of the net; a name kept before gets these.

    All masks of a net work on the same weights, which train on with any of them. `shrink` removes only what every kept
    mask and the present one mask. Raises InputError if nothing is pruned by the net's spec, or `name` is no identifier.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError(f"{name!r} cannot name masks; use letters, digits and underscores, such as 'edge'")
    for pruner in _pruners(net):
        pruner.keep_mask(name)


def use_masks(net: nn.Module, name: str | None) -> None:
    """Multiply by the masks kept under `name` from now on; by none for None, which leaves the whole network.

    Training, evaluation, `shrink` and export follow the masks in use; an event to come chooses its masks anew. Raises
    InputError if no masks have that name.
    """
    pruners = _pruners(net)
    known = kept_masks(net)
    if name is not None and name not in known:
        near = get_close_matches(str(name), known, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(f"there are no masks {name!r}; {hint}kept are: {', '.join(known) or 'none, use keep_masks'}")
    for pruner in pruners:
        pruner.use_mask(name)


def kept_masks(net: nn.Module) -> tuple[str, ...]:
    """The names of kept masks, in the order in which they were kept."""
    return tuple(dict.fromkeys(name for pruner in _pruners(net) for name in pruner.kept_masks))


def _pruners(net: nn.Module) -> list[Pruner]:
    found = [pruner for _, pruner in modules_of_type(net, Pruner)]
    if not found:
        raise InputError("the net has no masks; compress with a rule that prunes")
    return found
