#!/usr/bin/env python3
"""Write the spec file of every arm of every task: tools/paper/write_specs.py."""

from __future__ import annotations

from paper_parts.arms import file_of, specs_of
from paper_parts.tasks import TASKS

HEAD = "# {arm}, {how}. Written by tools/paper/write_specs.py.\n"
HOW = {"paper": "at the paper's times", "matched": "in the window that both orders share"}


def main() -> None:
    """Write all of them."""
    for name, task in TASKS.items():
        for kind, arms in specs_of(name, task.batch, task.dense).items():
            for arm, spec in arms.items():
                file = file_of(name, kind, arm)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(HEAD.format(arm=arm, how=HOW[kind]) + str(spec))


if __name__ == "__main__":
    main()
