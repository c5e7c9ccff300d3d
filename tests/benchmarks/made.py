"""Generated images for the studies that train on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble.machine.progress import SilentProgress
from ensemble.runs.dataset_job import dataset_job

ALONE: dict[str, Any] = {"verifiers": [], "device": "cpu"}
"""Of every study: nobody judges, and what trains on the images runs on the CPU, too."""


def dataset_of(recipe: str, fields: dict[str, Any], overrides: Sequence[str], folder: Path, images: int) -> Path:
    """The folder, with so many images of the recipe: made, gone on with, or there already."""
    job = dataset_job(recipe, ALONE | fields, overrides, folder, images, resume=folder.exists())
    job.check(1)
    if not job.is_finished:
        job.run(time.perf_counter(), SilentProgress())
    return folder
