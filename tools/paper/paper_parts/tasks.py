"""All tasks by name."""

from __future__ import annotations

from classification import Classification
from cyclegan import CycleGan
from detection import Detection
from pix2pix import Pix2Pix
from super_resolution import SuperResolution

from paper_parts.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Detection, SuperResolution, Pix2Pix, CycleGan)
}
