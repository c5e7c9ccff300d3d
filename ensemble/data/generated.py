"""Images that `invert.py dataset` made, with what every teacher says of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch.utils.data import Dataset

from ensemble.data.export import write_tree
from ensemble.data.labelled import LabelledImages
from ensemble.data.shards import SHARDS, Shard, class_labels, read_manifest
from ensemble.data.soft_labels import deviation, pooled, scales
from ensemble.machine.files import user_path
from ensemble.machine.progress import ProgressReporter, SilentProgress
from models import sha256

Item = tuple[torch.Tensor, int, torch.Tensor]
"""Image float32 (3, H, W), RGB in [0, 1]; target; logits float32 (K, classes), a row a teacher."""


class GeneratedImages(Dataset[Item]):
    """Images of a finished `invert.py dataset`, memory-mapped.

    An item is an image, float32 (3, H, W), RGB in [0, 1]; its target, an index into `class_names`; and logits,
    float32 (K, classes), a row for each of `teachers`. It can be pickled, so workers of a DataLoader read it, too.

    With `verify`, every shard's SHA-256 is compared with the manifest's, which reads all of them. Raises ValueError,
    in one line, where the dataset is not finished, or a shard is missing, damaged, or not as the manifest says.
    """

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = user_path(path)
        manifest = self.manifest = read_manifest(self.path)
        """What the dataset says of itself."""
        try:
            models = {str(name): str(said["model"]) for name, said in manifest["teachers"].items()}
            class_names, size = tuple(map(str, manifest["class_names"])), int(manifest["size"])
            listed = [(str(row["file"]), int(row["images"]), str(row["sha256"])) for row in manifest["shards"]]
            if not listed or not models:
                raise ValueError("no shards")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = " ".join(repr(error).split())
            raise ValueError(f"{self.path}: its manifest is damaged ({why}); make it again, by --resume") from None
        self.size = size
        """Height and width in pixels."""
        self.class_names: tuple[str, ...] = class_names
        """By target; empty where the first teacher names none."""
        self.models: dict[str, str] = models
        """What each teacher is, as a recipe names it."""
        self.teachers: tuple[str, ...] = tuple(self.models)
        self._files = [self.path / SHARDS / file for file, _, _ in listed]
        self._ends = list(accumulate(images for _, images, _ in listed))
        self._opened: dict[int, Shard] = {}
        for number, (_, images, digest) in enumerate(listed):
            self._check(self._shard(number), images, digest if verify else None)
        self.targets: torch.Tensor = self._joined(lambda shard: shard.targets())
        """int64 (N,)."""
        classes = self[0][2].shape[1]
        if not 0 <= int(self.targets.min()) <= int(self.targets.max()) < classes:
            raise ValueError(f"{self.path}: its targets are none of the {classes} classes; make it again")
        self.labels = class_labels(self.class_names, classes)
        """A name for each class, no two alike."""

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        if not isinstance(index, SupportsIndex):
            raise TypeError(f"an index is one whole number, not {index!r}; torch.utils.data.Subset takes several")
        index = range(len(self))[index]  # IndexError, and from the end
        number = bisect_right(self._ends, index)
        shard = self._shard(number)
        row = index - (self._ends[number - 1] if number else 0)
        one = slice(row, row + 1)
        logits = torch.cat([shard.logits(name, one) for name in self.teachers])
        return shard.pixels(one)[0].float() / 255, int(self.targets[index]), logits.float()

    def logits(self, teacher: str) -> torch.Tensor:
        """What a teacher says of all images, float16 (N, classes); ValueError for a name that is no teacher's."""
        if teacher not in self.models:
            raise ValueError(f"{teacher!r} is no teacher of {self.path}; they are {', '.join(self.teachers)}")
        return self._joined(lambda shard: shard.logits(teacher))

    def soft_labels(self, temperature: float = 1.0) -> torch.Tensor:
        """The teachers' mean probabilities of all images, float32 (N, classes).

        p = mean over t of softmax(s z_t / (s_t T)), where z_t are teacher t's logits minus their mean over the classes
        of an image, s_t is their root mean square over all images and classes, and s the mean of all s_t: a teacher
        that says everything louder than the others counts no more than they do. ValueError for T that is not positive
        and finite, and for a teacher that says the same everywhere.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"soft labels: the temperature must be positive and finite, not {temperature}")
        said = {name: self.logits(name).float() for name in self.teachers}
        factors = scales({name: deviation(z) for name, z in said.items()})
        scaled = [factors[name] * z for name, z in said.items()]
        return (pooled(scaled, "probabilities", temperature) / temperature).softmax(1)

    def labelled(self) -> LabelledImages:
        """All images, uint8, with their targets, in memory."""
        return LabelledImages(self._joined(lambda shard: shard.pixels()), self.targets.clone(), self.labels)

    def export(self, folder: str | Path, progress: ProgressReporter | None = None) -> None:
        """Writes all images as `train/<class>/<number>.png` below `folder`.

        `invert.py train`, `evaluate` and `torchvision.datasets.ImageFolder` read that. A class without images has no
        folder; characters that no folder's name can have are `_`. The folder is there whole or not at all. Raises
        ValueError where it is not empty.
        """
        shown = progress or SilentProgress()
        with write_tree(user_path(folder), "train", self.labels) as write:
            shown.start(len(self))
            for index, (pixels, target) in enumerate(zip(self._pixels(), self.targets.tolist(), strict=True)):
                write(pixels, target)
                shown.step(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __repr__(self) -> str:
        return f"GeneratedImages({len(self)} images of {self.size} x {self.size}; teachers {', '.join(self.teachers)})"

    # --- shards -----------------------------------------------------------------------------------------------

    def _shard(self, number: int) -> Shard:
        if number not in self._opened:
            self._opened[number] = Shard(self._files[number])
        return self._opened[number]

    def _check(self, shard: Shard, images: int, digest: str | None) -> None:
        """ValueError where a shard is not as the manifest says; with a SHA-256, to the bit."""
        problem = ""
        if (shard.images, shard.size) != (images, self.size):
            problem = f"holds {shard.images} images of {shard.size} pixels, not {images} of {self.size}"
        elif set(shard.teachers) != set(self.teachers):
            problem = f"has logits of {', '.join(shard.teachers) or 'nobody'}, not of {', '.join(self.teachers)}"
        elif digest is not None and sha256(shard.file) != digest:
            problem = "has another SHA-256 than the manifest says"
        if problem:
            raise ValueError(f"{shard.file} {problem}; remove it and make it again, by invert.py dataset --resume")

    def _joined(self, part: Callable[[Shard], torch.Tensor]) -> torch.Tensor:
        return torch.cat([part(self._shard(number)) for number in range(len(self._files))])

    def _pixels(self) -> Iterator[torch.Tensor]:
        for number in range(len(self._files)):
            yield from self._shard(number).pixels()
