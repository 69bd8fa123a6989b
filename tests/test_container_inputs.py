"""Lists and dicts of tensors as inputs of a file: detectors' heads take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import HERE
from torch import Tensor, nn

import fxcompress as fxc
from fxcompress.runtime import session


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.score, self.box = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, levels: Any) -> tuple[list[Tensor], list[Tensor]]:
        seen = [torch.relu(self.conv(x)) for x in (levels.values() if isinstance(levels, dict) else levels)]
        return [self.score(t) for t in seen], [self.box(t) for t in seen]


@pytest.mark.parametrize("keys", [None, ("p3", "p4")])
def test_each_tensor_of_a_container_is_an_input_of_the_file(keys: tuple[str, str] | None, tmp_path: Path) -> None:
    tensors = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)]
    levels: Any = tensors if keys is None else dict(zip(keys, tensors, strict=True))
    net = fxc.compress(Head(), "P0.5(w) -> Q8(w,f)", {"levels": levels}, total_steps=10, target=HERE)
    for _ in range(10):
        net(levels)
        net.schedule.step()
    file = tmp_path / "head.onnx"
    found = fxc.export_onnx(net, file)
    assert found.ok and len(found.outputs) == 4
    names = [i.name for i in session(file).get_inputs()]
    assert names == [f"levels_{key}" for key in keys or (0, 1)]
    more = [torch.randn(3, *x.shape[1:]) for x in tensors]
    feed = {name: x.numpy() for name, x in zip(names, more, strict=True)}
    assert [len(y) for y in session(file).run(None, feed)] == [3] * 4
    other = fxc.compress(nn.Sequential(nn.Conv2d(8, 2, 1)), "Q8(w)", tensors[0], total_steps=1)
    other.schedule.step()
    with pytest.raises(fxc.errors.VerifyError, match="was not exported from this net: it has an input 'levels_"):
        fxc.verify(other, file)
