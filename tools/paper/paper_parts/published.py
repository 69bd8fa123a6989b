"""The paper's own numbers (arXiv 2110.08271), in its metrics and on its data."""

from __future__ import annotations

ARMS = ("float", "Q(w,f)", "P(w) -> Q(w,f)", "Q(w,f) -> P(w)", "P(w,f) -> Q(w,f)", "Q(w,f) -> P(w,f)")

NUMBERS: dict[str, tuple[float | None, ...]] = {
    "classification": (92.6, 92.52, 92.23, 85.94, 91.44, 86.84),
    "detection": (74.47, 74.25, 74.44, 74.13, 73.0, 70.13),
    "super-resolution": (32.84, 32.68, 32.51, 32.54, 31.03, 31.66),
    "pix2pix": (119.9, None, 127.1, 123.5, 154.8, 135.0),
    "cyclegan": (67.1, None, 81.8, 83.72, 100.4, 89.35),
}
"""By task, a number for each of ARMS: accuracy in %, mAP in %, PSNR in dB, FID, FID."""


def published(task: str, arm: str) -> str:
    """The number as text, a dash where there is none."""
    number = NUMBERS[task][ARMS.index(arm)]
    return "–" if number is None else f"{number:g}"
