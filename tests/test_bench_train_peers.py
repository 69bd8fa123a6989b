"""The nets, the arithmetic and the workers of the benchmark of training steps, without its environments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "bench"))
import train_peers
from train_peers_parts import asked, models, peers


@pytest.mark.parametrize("name", train_peers.MODELS)
def test_the_nets_are_those_of_torchvision(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None, num_classes=models.CLASSES).eval()
    ours = models.MODELS[name]().eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(image), theirs(image))


def test_every_peer_has_its_file_and_its_version() -> None:
    assert set(peers.MODULES) == set(peers.DISTRIBUTIONS) == {*peers.PACKAGES, "fxcompress"}
    folder = Path(peers.__file__).parent
    assert {f"{name}.py" for name in peers.MODULES.values()} == {f.name for f in folder.glob("peer_*.py")}


def test_the_figure_is_the_median_of_ratios_without_the_first_round() -> None:
    row = {"float seconds": [1.0, 1.0, 2.0, 4.0], "compressed seconds": [9.0, 1.5, 4.0, 4.0]}
    assert train_peers._figures(row) == {"ratio": 1.5, "lowest": 1.0, "highest": 2.0, "float_ms": 2000.0}


def test_a_peer_that_cannot_run_is_left_out_with_the_last_line_of_its_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^KeyError: 'nobody'$"):
        asked.Asked(sys.executable, tmp_path / "log", ["nobody", "resnet18", "1", "wall"])
    row = {"model": "resnet18", "peer": "nobody", "skipped": "KeyError: 'nobody'"}
    head, _, line = train_peers._markdown([row]).splitlines()
    assert "not measured: KeyError: 'nobody'" in line and line.count("|") == head.count("|")
