"""The demo's data: scikit-learn's handwritten digits, split by seed, in an order that seed and epoch decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fxcompress.errors import FxCompressError

TEST_SHARE = 0.25
BRIGHTEST = 16.0
SHIFT = 1


class DemoError(FxCompressError):
    """A demo that cannot run as asked."""


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] in 0..1 and their classes [N], for training and for testing."""

    train_images: Tensor
    train_classes: Tensor
    test_images: Tensor
    test_classes: Tensor
    seed: int

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch; what does not fill a batch waits for the next epoch's order.

        Raises DemoError if the images do not fill one.
        """
        if not 2 <= batch_size <= len(self.train_images):
            raise DemoError(
                f"batch size {batch_size} does not fit {len(self.train_images)} training images; give 2 to that many"
            )
        return len(self.train_images) // batch_size

    def epoch(self, number: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, images shifted by up to a pixel: the same whenever it is asked for."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        order = torch.randperm(len(self.train_images), generator=generator)
        offsets = torch.randint(2 * SHIFT + 1, (len(order), 2), generator=generator)
        for step in range(self.steps(batch_size)):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            yield _shifted(self.train_images[chosen], offsets[chosen]), self.train_classes[chosen]


def load(seed: int) -> Digits:
    """The 1797 digits that ship with scikit-learn, classes in equal shares on both sides of the split.

    Raises DemoError if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DemoError("the demo needs scikit-learn; install it with: pip install 'fxcompress[demo]'") from None
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / BRIGHTEST
    classes = torch.from_numpy(found.target).long()
    train, test = train_test_split(range(len(classes)), test_size=TEST_SHARE, random_state=seed, stratify=found.target)
    return Digits(images[train], classes[train], images[test], classes[test], seed)


def _shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Each [1, H, W] image moved by its own offset, 0 to 2 SHIFT, of which SHIFT is none; empty pixels come in."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))[:, 0]
    rows = offsets[:, 0, None] + torch.arange(height)
    columns = offsets[:, 1, None] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]
