"""A finished run, or a dataset, as it is judged: images with their targets, and the networks they were made for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import torch

from ensemble.data.generated import GeneratedImages
from ensemble.data.shards import is_dataset
from ensemble.machine.files import user_path
from ensemble.runs.folder import UNITS, ResultsFolder
from ensemble.runs.networks import Networks
from models import ModelCard, model_card


@dataclass(frozen=True)
class FinishedRun:
    """What a results folder holds, checked."""

    name: str
    """The folder, as it was named."""
    images: torch.Tensor
    """(N, 3, H, W), RGB in [0, 1], float32."""
    targets: torch.Tensor
    """(N,) indices of the first teacher's classes."""
    class_names: tuple[str, ...]
    teachers: tuple[str, ...]
    """As its recipe names them."""

    @classmethod
    def read(cls, name: str) -> FinishedRun:
        """ValueError, with the folder's name, where a run or a dataset did not end there, or its files are damaged."""
        folder = ResultsFolder(user_path(name))
        if is_dataset(folder.path):
            return cls._of_dataset(name, GeneratedImages(folder.path))
        images, targets = folder.read_images()
        if not folder.finished:
            raise ValueError(
                f"{name} holds no finished run; go on with it, by --output {shlex.quote(name)} --resume, and judge it "
                "then"
            )
        if not all(row.get("of_class", True) for row in folder.read_rows(UNITS)):
            raise ValueError(
                f"{name} has images of units that are no classes, so nothing says what a judge should read"
            )
        recipe, summary = folder.read_recipe(), folder.read_summary()
        if not _are_images(images, targets):
            raise ValueError(
                f"{name}: its images are damaged, they are no RGB in [0, 1] with a target each; make them again"
            )
        try:
            teachers = tuple(str(teacher["model"]) for teacher in recipe["teachers"])
            class_names = tuple(map(str, summary.get("class_names", ())))
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{name}: its recipe or summary is damaged; make the images again") from None
        return cls(name, images, targets, class_names, teachers)

    @classmethod
    def _of_dataset(cls, name: str, made: GeneratedImages) -> FinishedRun:
        """A finished `invert.py dataset`: all its images, as they are stored."""
        return cls(name, made.labelled().images / 255, made.targets, made.class_names, tuple(made.models.values()))

    def check(self, judge: ModelCard) -> None:
        """ValueError where the targets count other classes than the judge's, as far as that is known here."""
        try:
            first = model_card(self.teachers[0])
            known = not self.class_names or first.class_names == self.class_names  # its card may say others today
        except (ValueError, IndexError):  # a module in memory, or a network of somebody else's
            known = False
        if known:
            same, whose = first.shares_classes(judge), first.name
        else:
            same = not (self.class_names and judge.class_names) or self.class_names == judge.class_names
            whose = "the run's own classes"
        if not same:
            raise ValueError(f"{self.name} has targets of {whose}, and {judge.name} has other classes")
        if int(self.targets.max()) >= judge.num_classes:
            raise ValueError(
                f"{self.name} has targets up to {self.targets.max()}, and {judge.name} has {judge.num_classes} classes"
            )

    def taught_by(self, judge: str) -> bool:
        """Whether the judge was among the teachers, as far as that is known here."""
        return Networks().taught(judge, self.teachers)


def _are_images(images: torch.Tensor, targets: torch.Tensor) -> bool:
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel() or images.dtype != torch.float32:
        return False
    if targets.shape != images.shape[:1] or targets.dtype != torch.int64 or int(targets.min()) < 0:
        return False
    return bool((images >= -1e-4).all() and (images <= 1 + 1e-4).all())  # NaN is neither
