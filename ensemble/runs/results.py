"""What a run makes: images, and what every network makes of them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import dump_yaml
from ensemble.engine.agreement import Agreement
from ensemble.image.pictures import draw_grid
from ensemble.machine.files import user_path
from ensemble.machine.lock import contents
from ensemble.machine.words import plural
from ensemble.recipe import Recipe, parse_recipe
from ensemble.runs.folder import PER_IMAGE, PER_LAYER, ResultsFolder


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """The results of one run, all trials together."""

    images: torch.Tensor
    """(N, 3, H, W), RGB in [0, 1], float32, on the CPU."""
    targets: torch.Tensor
    """(N,) indices of the first teacher's classes."""
    logits: dict[str, torch.Tensor]
    """(N, classes) by name, of each teacher and each verifier."""
    per_image: list[dict[str, Any]]
    """A row an image: target, and each network's reading, probability of the target, and loss, -log of it in nats.

    Where the recipe asks for it, `agreement`, the mean cosine between the teachers' gradients, and that of each pair.
    """
    per_layer: list[dict[str, Any]]
    """A row a BN layer of each teacher: how far the images' mean and variance are from the running ones, and how far
    those of as many real images are."""
    summary: dict[str, Any]
    """Losses and readings of the networks, time, memory, versions, warnings."""
    recipe: Recipe
    """With every `auto` resolved: running it again gives the same images, unless the run was made longer."""
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a recipe cannot hold: modules and terms that were handed over in memory, and that a run was made longer."""
    agreement: Agreement | None = None
    """Cosines between the teachers' gradients, by pair and around each pixel; None without `agreement: true`."""
    attribution: torch.Tensor | None = None
    """(N, H, W), where the gradient went over the steps; None without `attribution: true`."""

    def grid(self, columns: int = 10) -> Image.Image:
        """The images as one picture, at most ten in a row and twenty rows; a notebook shows it."""
        return draw_grid(self.images, self.targets, self.class_names, columns)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write all of it, as the command line does; ValueError where the folder is not empty or in use."""
        target = ResultsFolder(user_path(folder))
        if contents(target.path) and not overwrite:  # `check` would offer to resume
            raise ValueError(f"output: {target.path} is not empty; pass overwrite=True, or give another folder")
        target.check(overwrite=overwrite)  # before this holds it, and would find itself there
        with target.held():
            target.begin(overwrite)
            target.write_recipe(recipe_text(self.recipe, self.notes))
            self.write(target)
            target.write_summary(self.summary)

    def write(self, folder: ResultsFolder) -> None:
        """Images and readings, into a folder that a run has begun."""
        folder.write_images(self.images, self.targets, self.class_names)
        folder.write_readings(self.logits, self.per_image, self.per_layer)
        if self.agreement is not None:
            folder.write_agreement(self.agreement)
        if self.attribution is not None:
            folder.write_attribution(self.attribution)

    @classmethod
    def open(cls, folder: str | Path) -> Results:
        """The results in a folder; ValueError where none are, or they are damaged."""
        source = ResultsFolder(user_path(folder))
        images, targets = source.read_images()
        summary = source.read_summary()
        return cls(
            images=images,
            targets=targets,
            logits=source.read_logits(),
            per_image=source.read_rows(PER_IMAGE),
            per_layer=source.read_rows(PER_LAYER),
            summary=summary,
            recipe=_parsed(source),
            class_names=tuple(summary.get("class_names", ())),
            notes=(*summary.get("in_memory", ()), *summary.get("continued", ())),
            agreement=source.read_agreement(),
            attribution=source.read_attribution(),
        )

    def __repr__(self) -> str:
        n, _, height, width = self.images.shape
        read = {name: f"{row['accuracy']:.0%}" for name, row in self.summary.get("teachers", {}).items()}
        read |= {name: f"{row['accuracy']:.0%}" for name, row in self.summary.get("verifiers", {}).items()}
        shown = ", ".join(f"{name} reads {share}" for name, share in read.items())
        return f"Results({plural(n, 'image')} of {height} x {width}; {shown})"

    def _repr_html_(self) -> str:
        """What a notebook shows: who reads what, and all images."""
        stream = io.BytesIO()
        self.grid().save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        return f"<p>{html.escape(repr(self))}</p><img src='data:image/png;base64,{picture}'>"


def _parsed(folder: ResultsFolder) -> Recipe:
    with folder.parsing():
        return parse_recipe(folder.read_recipe())


def recipe_text(recipe: Recipe, notes: Sequence[str] = ()) -> str:
    """The recipe as YAML, under a comment for each thing that it cannot hold."""
    return "".join(f"# {note}\n" for note in notes) + dump_yaml(to_plain(recipe))


def image_rows(
    logits: Mapping[str, torch.Tensor],
    targets: torch.Tensor,
    own_targets: Mapping[str, torch.Tensor],
    trials: Sequence[int],
    class_names: Sequence[str],
    agreement: Agreement | None = None,
) -> list[dict[str, Any]]:
    """Rows of `Results.per_image`; `own_targets` are the targets as indices of each network's own classes."""
    rows: list[dict[str, Any]] = [
        {"image": i, "trial": trial, "target": target, "class": class_names[target] if class_names else str(target)}
        for i, (trial, target) in enumerate(zip(trials, targets.tolist(), strict=True))
    ]
    for name, said in logits.items():
        own = own_targets[name]
        reads = said.argmax(1).tolist()
        log_p = said.double().log_softmax(1).gather(1, own[:, None])[:, 0]
        for row, read, p, loss, target in zip(
            rows, reads, log_p.exp().tolist(), (-log_p).tolist(), own.tolist(), strict=True
        ):
            row |= {
                f"{name}/reads": read,
                f"{name}/right": read == target,
                f"{name}/probability": p,
                f"{name}/loss": loss,
            }
    if agreement is not None:
        for key, values in {"agreement": agreement.mean, **_of_pairs(agreement)}.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[key] = value
    return rows


def _of_pairs(agreement: Agreement) -> dict[str, torch.Tensor]:
    return {f"{pair}/cosine": cosines for pair, cosines in agreement.cosines.items()}
