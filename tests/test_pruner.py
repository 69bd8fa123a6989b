"""Contract 7: masks are exact."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxcompress as fxc
from fxcompress.constants import evaluate
from fxcompress.errors import InputError
from fxcompress.masks import kept, zeros_in
from fxcompress.pruner import Pruner


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0, 1))
def test_exactly_so_many_zeros_whatever_the_ties(values: list[int], sparsity: float) -> None:
    magnitude = torch.tensor(values, dtype=torch.float32)
    mask = kept(magnitude, sparsity)
    n = len(values)
    assert int((~mask).sum()) == (n if sparsity == 1 else min(round(sparsity * n), n - 1))
    if mask.any() and not mask.all():
        assert magnitude[~mask].max() <= magnitude[mask].min()


def test_of_equal_magnitudes_the_first_go() -> None:
    assert kept(torch.ones(4), 0.5).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("sparsity", "n", "zeros"), [(0.5, 5, 2), (0.5, 7, 4), (0.99, 3, 2), (1.0, 3, 3), (0.0, 3, 0)])
def test_zeros_in(sparsity: float, n: int, zeros: int) -> None:
    assert zeros_in(sparsity, n) == zeros


def test_a_weight_keeps_its_shape_and_masked_elements_get_no_gradient() -> None:
    pruner = Pruner((2, 2), (2, 2))
    weight = torch.tensor([[1.0, -4.0], [3.0, -2.0]], requires_grad=True)
    assert pruner(weight) is weight
    pruner.prune(0.5, weight.detach().abs())
    pruner(weight).sum().backward()
    assert pruner(weight).tolist() == [[0, -4], [3, 0]]
    assert weight.grad.tolist() == [[0, 1], [1, 0]]


def test_an_activation_is_judged_by_its_mean_magnitude_over_the_window() -> None:
    pruner = Pruner((2,))
    pruner.observing = True
    pruner(torch.tensor([[1.0, -3.0], [1.0, 3.0]]))
    pruner(torch.tensor([[4.0, 0.5]]))
    pruner.eval()
    pruner(torch.tensor([[100.0, 0.0]]))
    assert pruner.magnitude.tolist() == [6, 6.5]
    pruner.prune(0.5, pruner.magnitude)
    assert pruner(torch.tensor([[1.0, 1.0]])).tolist() == [[0, 1]]


def test_another_size_is_refused() -> None:
    pruner = Pruner((2, 4, 4))
    pruner.prune(0.5, pruner.magnitude)
    with pytest.raises(InputError, match=r"shape \(2, 5, 5\) per sample reached a mask of shape \(2, 4, 4\)"):
        pruner(torch.randn(1, 2, 5, 5))


def test_the_bytes_that_compiled_nets_read_are_the_masks_own() -> None:
    def reads_its_mask(pruner: Pruner) -> bool:
        pruner.keep(torch.rand(pruner.mask.shape) > 0.5)
        return pruner._bytes.dtype == torch.uint8 and torch.equal(pruner._bytes.bool(), pruner.mask)

    pruner = Pruner((4, 3), (4, 3))
    seen = pruner._bytes
    assert reads_its_mask(pruner) and pruner._bytes is seen
    pruner.mask = torch.ones(2, 3, dtype=torch.bool)
    assert reads_its_mask(pruner)
    for twin in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner)), copy.deepcopy(pruner).double()):
        assert reads_its_mask(twin) and twin.mask.data_ptr() != pruner.mask.data_ptr()
    other = Pruner((2, 3), (2, 3))
    other.load_state_dict(pruner.state_dict(), assign=True)
    assert torch.equal(other._bytes.bool(), other.mask) and reads_its_mask(other)
    other.mask.data = torch.zeros(2, 3, dtype=torch.bool)
    assert reads_its_mask(other)


def test_an_event_leaves_nothing_of_the_weights_behind() -> None:
    net = fxc.compress(nn.Sequential(nn.Linear(4, 4)), "P0.5(w) -> Q8(w,f)", torch.randn(2, 4), total_steps=10)
    pruner = next(name for name, m in net.named_modules() if isinstance(m, Pruner))
    gc.collect()
    gc.disable()
    try:
        [node] = [n for n in net.graph.nodes if n.target == pruner]
        net.get_submodule(pruner).enable()
        pruned = weakref.ref(evaluate(net, node))
        assert pruned() is None
    finally:
        gc.enable()
