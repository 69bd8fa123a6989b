#!/usr/bin/env python3
"""One picture of a task's sample answers, an arm a row: tools/paper/pictures.py TASK --work WORK --out FILE.jpg."""

from __future__ import annotations

import argparse
from pathlib import Path

from paper_parts.arms import KINDS, arms_of
from PIL import Image, ImageDraw

MARGIN = 130
"""Pixels for the name of an arm."""


def main() -> None:
    """Put the rows together that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["super-resolution", "pix2pix", "cyclegan"])
    parser.add_argument("--work", type=Path, required=True, help="folder of the task's results")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="cpu")
    parser.add_argument("--kind", choices=KINDS, default="paper")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = {}
    for arm, spec in arms_of(options.task, options.kind).items():
        name = "-".join([options.task, options.budget, options.kind, spec.stem if spec else "float", str(options.seed)])
        if (file := options.work / f"{name}-0.png").exists():
            rows[arm] = Image.open(file)
    if not rows:
        parser.error(f"there are no pictures of '{options.task}' in '{options.work}'; train its arms first")
    below(rows).save(options.out, quality=90)


def below(rows: dict[str, Image.Image]) -> Image.Image:
    """Rows below each other, with their names on the left."""
    first = next(iter(rows.values()))
    whole = Image.new("RGB", (MARGIN + first.width, len(rows) * first.height), "white")
    draw = ImageDraw.Draw(whole)
    for i, (name, row) in enumerate(rows.items()):
        whole.paste(row, (MARGIN, i * first.height))
        draw.text((6, (i + 0.5) * first.height - 6), name, fill="black")
    return whole


if __name__ == "__main__":
    main()
