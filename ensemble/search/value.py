"""The metric of a recipe at a seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.machine.errors import MachineFailure, is_out_of_memory, problems_of
from ensemble.recipe import Recipe
from ensemble.search.folder import SearchFolder
from ensemble.search.images import made, make_held_out, seed_at
from ensemble.search.metric import Kit, Measure
from ensemble.search.settings import Settings
from ensemble.search.tasks import TaskFailed

_COPY = "copy held_out.safetensors from the folder of the worker that began the study, and start again"


class Value:
    """Runs a recipe and measures its images; what all runs share is loaded with the first one."""

    def __init__(
        self,
        settings: Settings,
        folder: SearchFolder,
        device: torch.device,
        study: Any,
        message: Callable[[str], None],
    ) -> None:
        self._settings, self._folder, self._device = settings, folder, device
        self._study, self._message = study, message

    def __call__(self, recipe: Recipe, place: int, must: bool = False) -> float:
        """The metric of a recipe at the place of a seed; TaskFailed where it cannot be had, unless it must.

        What a network or a plugin raises fails a point, too: the others go on.
        """
        measure = self.measure
        try:
            images, targets = made(recipe, seed_at(recipe, place))
            value = float(measure(images, targets, place))
            if not math.isfinite(value):
                raise ValueError(f"the metric is {value}")
            return value
        except (MachineFailure, OSError):
            raise
        except Exception as error:
            if isinstance(error, ValueError):
                why = " ".join(problems_of(error))
            elif is_out_of_memory(error):
                why = "out of memory"
            elif must:
                raise
            else:
                why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            if must:
                raise ValueError(f"point 0, the recipe as it is: {why}") from None
            raise TaskFailed(why) from None

    @cached_property
    def measure(self) -> Measure:
        """The metric, with all that it loads."""
        settings = self._settings
        kit = Kit(settings.judge, settings.recipe, settings.data, self._device, lambda: self._held_out(kit))
        return settings.metric.measure(kit)

    def _held_out(self, kit: Kit) -> LabelledImages:
        """Made by the first worker, and read by the others: points are compared on the same images."""
        study, name = self._study, self._folder.path
        if not self._folder.has_held_out:
            self._message("held-out images: one worker makes them, once")
        with self._folder.turn():
            if not self._folder.has_held_out:
                if "held_out" in study.user_attrs:
                    raise ValueError(f"{name} lacks the held-out images that the study has; {_COPY}")
                self._folder.write_held_out(make_held_out(kit))
            held_out = self._folder.read_held_out()
        found = hashlib.blake2b()
        held_out.hash_into(found)
        digest = found.hexdigest()
        if study.user_attrs.get("held_out", digest) != digest:
            raise ValueError(f"{name} holds other held-out images than the study has; {_COPY}")
        study.set_user_attr("held_out", digest)
        return held_out
