"""Fréchet distance of features (arXiv 1706.08500), by any feature network that is named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fxcompress.runtime import session


class FileFeatures(nn.Module):
    """An ONNX file from images [N, 3, H, W] in 0..1 to features [N, D]. Raises ValueError for any other shape."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.session = session(file)
        self.num_features = len(self._run(torch.zeros(2, 3, 64, 64))[0])

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1 to [N, D] float."""
        return self._run(x.float()).to(x.device)

    def _run(self, x: Tensor) -> Tensor:
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: x.cpu().numpy()})
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(f"the feature network gave {found.shape} for {len(x)} images; it must give [N, D]")
        return torch.from_numpy(found)


def frechet_distance(features: nn.Module, real: Tensor, made: Tensor) -> float:
    """Of images [N, 3, H, W] in 0..1; lower is better. With fewer images than features it is biased upwards."""
    metric = FrechetInceptionDistance(feature=features, normalize=True)
    for images, is_real in ((real, True), (made, False)):
        for part in images.split(10):
            metric.update(part, real=is_real)
    return float(metric.compute())


class Moments(nn.Module):
    """Means and deviations of color over a grid of 2 x 2: features for trials without a feature network."""

    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 24]."""
        x = x.float()
        mean = nn.functional.adaptive_avg_pool2d(x, 2)
        square = nn.functional.adaptive_avg_pool2d(x.square(), 2)
        return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], 1).flatten(1)
