"""Masks from scores: exactly so many entries go, those of the least scores first, of equal ones the first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxcompress.patterns import Blocks, Grouped


def zeros_in(sparsity: float, n: int) -> int:
    """How many of `n` entries a sparsity in [0, 1] prunes: min(round_half_even(s n), n - 1) unless s = 1."""
    return n if sparsity == 1 else min(round(sparsity * n), n - 1)


def kept(scores: Tensor, sparsity: float) -> Tensor:
    """A bool mask of `scores`' shape, False for exactly the `zeros_in` least ones; of equal ones the first go."""
    return _without_least(scores, zeros_in(sparsity, scores.numel()))


def kept_of_all(scores: Sequence[Tensor], sparsity: float, floor: float) -> list[Tensor]:
    """A mask for each of several tensors: the `zeros_in` least scores of all entries together go.

    Of each tensor the share `floor` stays, and one entry at least, so that no layer dies, unless all go (s = 1). Raises
    ValueError where that leaves too few that may go.
    """
    if sparsity == 1:
        return [kept(one, 1.0) for one in scores]
    flat = [one.flatten() for one in scores]
    sizes = [len(one) for one in flat]
    count = zeros_in(sparsity, sum(sizes))
    if count > may_go(sizes, floor):
        raise ValueError(f"{count} of {sum(sizes)} entries cannot go where a share of {floor} of each tensor stays")
    free = [~_without_least(one, may_go([len(one)], floor)) for one in flat]
    joined = torch.cat([torch.where(goes, one, torch.inf) for one, goes in zip(flat, free, strict=True)])
    stays = _without_least(joined, count)
    parts = torch.split(stays, sizes)
    return [part.view(one.shape) for part, one in zip(parts, scores, strict=True)]


def may_go(sizes: Sequence[int], floor: float) -> int:
    """How many entries of tensors of these sizes a global scope can prune: all but `floor` of each, and one of each."""
    return sum(size - max(1, round(floor * size)) for size in sizes)


def _without_least(scores: Tensor, count: int) -> Tensor:
    flat = scores.flatten()
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if flat.is_cpu:  # PyTorch's own operators take the memory of several copies
        return torch.from_numpy(_all_but_least(flat.detach().float().numpy(), count)).view(scores.shape)
    threshold = flat.kthvalue(count).values
    below, ties = flat < threshold, flat == threshold
    pruned = below | (ties & (ties.cumsum(0) <= count - below.sum()))
    return ~pruned.view(scores.shape)


def _all_but_least(flat: np.ndarray, count: int) -> np.ndarray:
    threshold = np.partition(flat, count - 1)[count - 1]
    stays: np.ndarray = ~(flat < threshold)
    ties = np.flatnonzero(flat == threshold)
    stays[ties[: count - (len(flat) - np.count_nonzero(stays))]] = False
    return stays


def kept_of_each(scores: Tensor, pattern: Grouped, axis: int) -> Tensor:
    """A mask with the `kept` best of every `of_each` neighbours along `axis`; of equal ones the first go."""
    moved = scores.movedim(axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, pattern.of_each)
    # Stable, so that of equal scores the first go, as elsewhere.
    order = groups.argsort(dim=-1, stable=True)
    mask = torch.ones_like(groups, dtype=torch.bool).scatter(-1, order[..., : pattern.of_each - pattern.kept], False)
    return mask.flatten(-2).movedim(-1, axis)


def block_scores(scores: Tensor, blocks: Blocks, axes: tuple[int, int]) -> Tensor:
    """The sum of each block of a weight whose outputs and inputs lie along `axes`: one score a block."""
    moved = scores.movedim(axes, (0, 1))
    rest = moved.shape[2:]
    return moved.reshape(-1, blocks.outputs, moved.shape[1] // blocks.inputs, blocks.inputs, *rest).sum((1, 3))


def spread_blocks(mask: Tensor, blocks: Blocks, axes: tuple[int, int]) -> Tensor:
    """A mask with one entry a block as one with an entry for each weight."""
    return mask.repeat_interleave(blocks.outputs, 0).repeat_interleave(blocks.inputs, 1).movedim((0, 1), axes)
