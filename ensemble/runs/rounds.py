"""A student and its images in rounds: each time new images on which it differs from its teachers, and all are kept."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt

from ensemble.config.checked import Checked
from ensemble.config.overrides import differences, is_below
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import dump_yaml, load_yaml
from ensemble.machine.files import replacing, user_path, write_json, write_text
from ensemble.machine.output_folder import OutputFolder
from ensemble.machine.progress import ProgressReporter
from ensemble.runs.dataset_folder import DatasetFolder
from ensemble.runs.dataset_job import DatasetJob, dataset_job
from ensemble.training.distill import begins_from, distill
from ensemble.training.distillation import DistillationRecipe
from ensemble.training.folder import SUMMARY, WEIGHTS, TrainingFolder
from ensemble.training.student import learned_order, prepare
from models import model_card

MARK = "rounds.yaml"
"""What shows whose a folder is: the distillation and its rounds."""
_PART = re.compile(r"(student|images)_\d+")
_WHERE = "folder"
"""Of MARK: where the rounds were written."""
_SEEDS = 1_000_000
"""Between the first batches of two rounds."""


@dataclass(frozen=True)
class Rounds(Checked):
    """How often new images are made against the student as it is, and how (Adaptive DeepInversion, Yin et al. 2020)."""

    count: PositiveInt
    images: PositiveInt = 300
    """New ones in each round."""
    epochs: PositiveInt = 20
    """Of the student before each round; `schedule.epochs` are those after the last."""
    competition: NonNegativeFloat = 1.0
    """The weight of the term `competition`, 1 - JS of teacher and student; the first pool was made without. At 0 all
    are: what rounds are worth without it."""


@dataclass(frozen=True)
class RoundsFolder(OutputFolder):
    """The parts of it: `student_0`, `images_1`, `student_1`, and so on, each a folder of its own below `path`."""

    what = "distillation in rounds"
    begins_with = MARK

    def student(self, number: int) -> TrainingFolder:
        return TrainingFolder(self.path / f"student_{number}", DistillationRecipe)

    def images(self, number: int) -> DatasetFolder:
        return DatasetFolder(self.path / f"images_{number}")

    def check(self, described: Mapping[str, Any], free: tuple[str, ...], *, resume: bool, overwrite: bool) -> None:
        """Raises ValueError where these rounds may not be written here; changes nothing. `free` may be another now."""
        if not self.is_taken(resume=resume, overwrite=overwrite):
            return
        if not (self.path / MARK).exists():
            raise self.holds_none("output")
        changed = differences(load_yaml(self.path / MARK), dict(described)) if resume else []
        if changed := [path for path in changed if not is_below(path, (*free, _WHERE))]:
            raise self.holds_another(changed)

    def begin(self, described: Mapping[str, Any], *, overwrite: bool) -> None:
        """Writes what the rounds are; with `overwrite` what earlier ones made is removed before: it would be taken for
        theirs."""
        if overwrite:
            self.remove((SUMMARY, WEIGHTS))
            for part in self.path.iterdir():
                if _PART.fullmatch(part.name) and part.is_dir() and not part.is_symlink():
                    shutil.rmtree(part)
        elif (self.path / MARK).is_file():
            self._settle(load_yaml(self.path / MARK).get(_WHERE))
        write_text(self.path / MARK, dump_yaml({_WHERE: str(self.path.resolve()), **described}))

    def _settle(self, before: str | None) -> None:
        """Where the folder was moved, its parts call each other by where they lie now."""
        here = str(self.path.resolve())
        for recipe in self.path.glob("*/recipe.yaml") if before not in (None, here) else ():
            if _PART.fullmatch(recipe.parent.name):
                write_text(recipe, dump_yaml(_moved(load_yaml(recipe), f"{before}/", f"{here}/")))

    def removes(self, name: str) -> bool:
        return name in (SUMMARY, WEIGHTS) or _PART.fullmatch(name) is not None

    def end(self, weights: Path, summary: Mapping[str, Any]) -> None:
        """The last student's, beside what the rounds were."""
        (self.path / SUMMARY).unlink(missing_ok=True)
        with replacing(self.path / WEIGHTS) as file:
            shutil.copyfile(weights, file)
        write_json(self.path / SUMMARY, summary)


def _moved(node: Any, before: str, here: str) -> Any:
    """The plain recipe with this beginning of paths replaced, also of those behind a network's name."""
    if isinstance(node, Mapping):
        return {key: _moved(value, before, here) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, before, here) for value in node]
    if not isinstance(node, str):
        return node
    if node.startswith(before):
        return here + node.removeprefix(before)
    name, at, rest = node.partition(f"@{before}")  # as a network's weights
    return f"{name}@{here}{rest}" if at else node


@dataclass(frozen=True)
class RoundsRun:
    """A student, its lessons and the images made between them."""

    recipe: DistillationRecipe
    rounds: Rounds
    folder: RoundsFolder
    device: torch.device

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """ValueError where the run may not write here, cannot end, or its images cannot be made; changes nothing."""
        free = tuple(f"distillation.{name}" for name in self.recipe.free)
        self.folder.check(self._described(), free, resume=resume, overwrite=overwrite)
        student = self.recipe.student
        if model_card(student).family == "edge_popup":
            raise ValueError(f"student: {student} learns the scores of a subnet from the start, and rounds go on")
        learner = prepare(self.recipe)  # real images that the last lesson is tested on are read here, too
        if not (resume and self.folder.student(0).path.exists()):
            self.recipe.lesson.begin(learner.pool, learner.card, self.recipe.schedule, self.device)
        if overwrite:
            self.folder.check_kept(begins_from(self.recipe))
        self._job(1, student if "@" in student else f"{student}@random", resume=False, overwrite=False)

    def run(self, *, resume: bool, overwrite: bool, progress: ProgressReporter) -> dict[str, Any]:
        """The last student's summary, which is written beside its weights in the folder itself."""
        self.check(resume=resume, overwrite=overwrite)
        with self.folder.held():
            self.folder.begin(self._described(), overwrite=overwrite)
            summary: dict[str, Any] = {}
            for number in range(self.rounds.count + 1):
                if number:
                    progress.message(f"round {number} of {self.rounds.count}")
                    self._make(number, resume, overwrite, progress)
                folder = self.folder.student(number)
                go_on = {"resume": resume and folder.path.exists(), "overwrite": overwrite}
                summary = distill(self._lesson(number), folder, self.device, progress=progress, **go_on)
            first = self.folder.student(0).read_summary()
            lost = {"pruned": first["pruned"]} if "pruned" in first else {}  # the later students have what it left
            summary |= lost | {"rounds": list(self._told())}
            self.folder.end(folder.weights, summary)
        return summary

    def _lesson(self, number: int) -> DistillationRecipe:
        """What the student does before round number + 1, or after the last."""
        mine = tuple(str(self.folder.images(i).path.resolve()) for i in range(1, number + 1))
        recipe = replace(self.recipe, student=self._student(number), dataset=(*self.recipe.dataset, *mine))
        if number:
            recipe = replace(recipe, prune=None)  # it has lost its channels
        if number == self.rounds.count:
            return recipe
        schedule = replace(recipe.schedule, epochs=self.rounds.epochs)
        return replace(recipe, schedule=schedule, test=None, test_every=0, diagnose=False)

    def _student(self, number: int) -> str:
        """As it is before its lesson of that number: the first time as the recipe says, then with its own weights."""
        if not number:
            return self.recipe.student
        name = self.recipe.student.partition("@")[0]
        return f"{name}@{self.folder.student(number - 1).weights.resolve()}"

    def _make(self, number: int, resume: bool, overwrite: bool, progress: ProgressReporter) -> None:
        """The images of a round."""
        go_on = resume and self.folder.images(number).path.exists()
        job = self._job(number, self._student(number), resume=go_on, overwrite=overwrite and not go_on)
        job.check(1)
        if not job.is_finished:
            job.run(time.perf_counter(), progress)

    def _job(self, number: int, student: str, *, resume: bool, overwrite: bool) -> DatasetJob:
        """By the first pool's recipe, with the student beside its teachers."""
        pool = DatasetFolder(user_path(self.recipe.dataset[0]))
        if not pool.finished:
            raise ValueError(f"dataset: {pool.path} is no finished dataset, whose recipe makes the new images")
        recipe = pool.read_recipe()
        if any(entry.student for entry in recipe.teachers):
            raise ValueError(f"dataset: {pool.path} was made beside a student already; give the first pool first")
        plain = to_plain(recipe) | {"seed": recipe.seed + _SEEDS * number, "verifiers": []}
        plain["runtime"] |= {
            "replicas": 1,
            "device": str(self.device),
        }  # this process makes them, whoever made the pool
        alone = [entry | {"ranks": None} for entry in plain["teachers"]]
        classes = self._classes(model_card(recipe.teachers[0].model).class_names)
        plain["teachers"] = [*alone, {"model": student, "student": True, "classes": classes}]
        plain["objectives"] = [*plain["objectives"], {"kind": "competition", "weight": self.rounds.competition}]
        output = self.folder.images(number).path
        return dataset_job(plain, {}, [], output, self.rounds.images, resume=resume, overwrite=overwrite)

    def _classes(self, names: tuple[str, ...]) -> dict[str, int] | None:
        """Where the first teacher's classes are among the student's; None where they are alike, or have no names."""
        student = model_card(self.recipe.student)
        if len(set(names)) < len(names):
            raise ValueError(
                "rounds: several classes of the first teacher have one name, by which the student's are found; give "
                "each its own, as NAME:class_names=FILE"
            )
        if student.class_names in ((), names):
            return None
        order = learned_order(student, names)
        return {name: order.index(name) for name in names} or None

    def _described(self) -> dict[str, Any]:
        return {"rounds": to_plain(self.rounds), "distillation": to_plain(self.recipe)}

    def _told(self) -> Iterator[Mapping[str, Any]]:
        """Of each round, how many new images there are and how many of them each teacher reads as their target."""
        for number in range(1, self.rounds.count + 1):
            manifest = self.folder.images(number).read_manifest()
            yield {
                "images": manifest["images"],
                "teachers": {k: v["accuracy"] for k, v in manifest["teachers"].items()},
            }
