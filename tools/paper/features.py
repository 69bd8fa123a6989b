#!/usr/bin/env python3
"""A feature network for FID from local weights: tools/paper/features.py --data-root DATA --out features.onnx.

EfficientNet-Lite0 trained on ImageNet up to its pooled features, 1,280 of them, from images [N, 3, H, W] in 0..1. Where
the Inception network of published numbers is at hand as such an ONNX file, name that one to the tasks instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from accuracy_parts.models import load_model

SIZE = 224


class Features(nn.Module):
    """The network's pooled features of images of any size."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1 to [N, 1280]."""
        x = nn.functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", antialias=False)
        return self.net((255 * x - 127) / 128)  # type: ignore[no-any-return]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    net = load_model("efficientnet_lite0", options.data_root)
    net._fc, net.dropout = nn.Identity(), nn.Identity()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    torch.onnx.export(
        Features(net).eval(), (torch.rand(2, 3, 96, 96),), options.out, dynamo=True, verbose=False,
        external_data=False, dynamic_shapes=(free,),
    )  # fmt: skip


if __name__ == "__main__":
    main()
