"""Preferred images of units, in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ensemble.machine.hardware import settings_kept
from ensemble.plugins import load_entry_points
from ensemble.runs.networks import Named
from ensemble.units.job import units_job
from ensemble.units.preferred import Preferred


@settings_kept()
def prefer(
    models: Named | nn.Module | Sequence[Named | Mapping[str, Any]],
    units: str | Sequence[str],
    *,
    method: str = "fourier",
    images_per_unit: int = 1,
    size: int | None = None,
    generator: str | None = None,
    bn_matching: float = 0.0,
    real: str | Path | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    iterations: int | None = None,
    progress: bool = True,
    overrides: str | Sequence[str] = (),
    **fields: Any,
) -> Preferred | None:
    """The images that units of one or several networks prefer. Under torchrun ranks but 0 get None.

    `models` and `fields` are as in `invert`; `units` is a selection or several, as "layer3.0:0-15", "logits:cat" or
    "a/layer4:12 + b/blocks.9:301" (see `ensemble.objectives.selection`). `method` is one of METHODS; with a
    `generator`, `gd` and `lbfgs` move its code. Images are `size` pixels, by default the largest input size.
    `bn_matching` above 0 also matches the networks' BN statistics, with that weight beside each activation.
    `real` is a folder or archive of images, in folders or not, of whose `split` (by default `train`, or where there are
    no splits, of all) up to `ensemble.units.real.AT_MOST` are the scale, and `top` shows those that excite each unit
    most.

    Raises ValueError for mistakes, with one line each.
    """
    began = time.perf_counter()
    if resume and overwrite:
        raise ValueError("resume and overwrite: give one of them; the run there goes on, or is replaced")
    if resume and output is None:
        raise ValueError("resume: there is no run to go on with; name its folder as output")
    load_entry_points()
    job = units_job(
        models,
        units,
        method=method,
        images_per_unit=images_per_unit,
        size=size,
        generator=generator,
        bn_matching=bn_matching,
        real=real,
        split=split,
        output=output,
        resume=resume,
        overwrite=overwrite,
        iterations=iterations,
        overrides=overrides,
        **fields,
    )
    return job.run(began, progress, keeps_partial=True)
