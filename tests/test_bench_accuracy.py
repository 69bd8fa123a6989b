"""The accuracy benchmark's own arithmetic, without its data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "bench"))
from accuracy_parts import models, ours, table, training

RECIPE = training.Recipe(5, 4, 0.1, adam=False, distill=False)


def test_logits_equal_to_the_reference_agree_in_all() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    found = training.figures(logits, logits, torch.tensor([0, 2]))
    assert found == training.Figures(accuracy=50.0, agreement=100.0, divergence=0.0, error=0.0)


def test_the_error_is_a_share_of_the_variance() -> None:
    reference = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    found = training.figures(reference * 1.5, reference, torch.tensor([0, 1]))
    assert found.error == pytest.approx(0.25) and found.divergence > 0 and found.accuracy == 100.0


def test_images_without_label_do_not_count_and_classes_are_the_only_answers() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0], [9.0, 0.0, 0.0]])
    assert training.figures(logits, logits, torch.tensor([2, 2, -1]), classes=(1, 2)).accuracy == 50.0


def test_every_method_sees_the_same_batches() -> None:
    first, again, other = (list(training._batches(10, RECIPE, seed)) for seed in (0, 0, 1))
    assert [b.tolist() for b in first] == [b.tolist() for b in again] != [b.tolist() for b in other]
    assert [len(b) for b in first] == [4] * 5


@pytest.mark.parametrize(
    ("model", "size", "parameters"),
    [("resnet20", 32, 269_722), ("resnet56", 32, 853_018), ("efficientnet_lite0", 224, 4_652_008)],
)
def test_the_networks_have_the_published_size(model: str, size: int, parameters: int) -> None:
    net = models.MODELS[model]().eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    with torch.no_grad():
        assert net(torch.zeros(1, 3, size, size)).shape[1] in {10, 1000}


def test_our_spec_has_defaults_but_for_the_settings() -> None:
    work = training.Work("resnet20", 4, 8, 0, RECIPE)
    weight, activation = ours.spec_of(work, {"weight_range": "mse"})["rules"]
    assert weight == {"op": "quantize", "target": "weight", "bits": 4, "first_last_bits": 8, "range": "mse"}
    assert activation == {"op": "quantize", "target": "activation", "bits": 4, "first_last_bits": 8}


def test_the_table_averages_seeds_and_says_why_a_cell_is_empty() -> None:
    figures = {"accuracy": 80.0, "agreement": 90.0, "divergence": 0.5, "error": 0.25}
    cell = {"model": "m", "bits": 4, "edge_bits": 8, "method": "a", "torch": figures}
    cells = [cell, {**cell, "torch": {**figures, "accuracy": 82.0}}, {**cell, "method": "b", "skipped": "no kernel"}]
    rows = table.markdown(cells).splitlines()[2:]
    assert rows == [
        "| m | W4A4, edges 8 | a | 81.00 % | – | 90.00 % | – | 0.5000 | 0.2500 | defaults |",
        "| m | W4A4, edges 8 | b | – | – | – | – | – | – | not measured: no kernel |",
    ]
