"""What a network that was no teacher says of images, alone and beside real ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.data.tree import few
from ensemble.evaluation.bn_distance import bn_distance
from ensemble.evaluation.classification import Accuracy, accuracy_of, logits_of
from ensemble.evaluation.comparison import Found, Known, alone, as_many_of_each, beside, memorised
from ensemble.evaluation.features import penultimate_features
from ensemble.evaluation.near_duplicates import near_duplicates, thumbnails
from ensemble.machine.hardware import channels_last
from ensemble.machine.rng import generator
from models import ModelCard, as_many_in_order, class_indices

Watch = Callable[[str, Sequence[torch.Tensor]], Iterable[torch.Tensor]]
"""Hands on the parts of what is read under a name, and may show how far it is."""
Reader = Callable[[nn.Module, ModelCard, torch.Tensor], torch.Tensor]

_AT_ONCE = 256


@dataclass(frozen=True)
class Judgement:
    """One set of images by one judge; None for what cannot be said, and `notes` why."""

    n: int
    accuracy: Accuracy
    near_duplicates: float
    """Share of images with a near-duplicate in the set."""
    bn_distance: float | None = None
    """From the judge's running statistics, in units of what as many real images have."""
    diversity: float | None = None
    inception_score: float | None = None

    frechet: float | None = None
    """From here on beside real test images of the same classes."""
    kernel: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None

    closer_to_train: float | None = None
    """Share of images nearer to training images than to as many test images; about 0.5 without memorisation."""
    train_copies: float | None = None
    """Share of images with a near-duplicate among all training images of these classes."""
    notes: tuple[str, ...] = ()
    """A line for each figure that so many images give badly or not at all."""


class Judge:
    """A network that was no teacher, and what it makes of real images where they are given.

    `real` are test images to compare with, `train` training images that might have been copied; of both, only those
    of `classes` are read (all where it is None).

    Raises ValueError where the real images' classes are neither among the judge's by name or number, nor as many under
    names that are all different, and where they lack some of `classes`.
    """

    def __init__(
        self,
        net: nn.Module,
        card: ModelCard,
        real: LabelledImages | None = None,
        train: LabelledImages | None = None,
        *,
        classes: torch.Tensor | None = None,
        watch: Watch = lambda _, parts: parts,
    ) -> None:
        self.net = channels_last(net)
        self.card = card
        self._watch = watch
        self._train_data = train
        # Both are matched with the classes before one of them is read.
        test, other = (None if data is None else (data, *of_classes(card, data, classes)) for data in (real, train))
        self._test = self._known("real test images", *test) if test else None
        self._memory = self._remember(self._test, *other) if other and self._test else None

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, name: str = "images") -> Judgement:
        """Judge `images` (N, 3, H, W), RGB in [0, 1], with their targets (N,), against real ones of the same classes.

        ValueError where there are no real images of some of these classes.
        """
        return self._judge(name, images, targets, torch.empty(0, dtype=torch.long))

    def scale(self, train: LabelledImages, wanted: int | torch.Tensor, seed: int = 0) -> Judgement:
        """The same for real training images, drawn without replacement: what a perfect inversion would get.

        So many of all, or of each class as many as the targets `wanted` have; fewer where there are no more. Where
        `train` is the judge's own, they are no copies of themselves. ValueError for none.
        """
        labels = _own_labels(self.card, train)
        index = torch.randperm(len(train), generator=generator(seed, "scale"))
        index = index[:wanted] if isinstance(wanted, int) else index[as_many_of_each(labels[index], wanted)]
        if not len(index):
            raise ValueError("data: no real training image is of a class of the images that are judged")
        taken = index if train is self._train_data else index[:0]
        return self._judge(f"{len(index)} real training images", train.images[index], labels[index], taken)

    def _judge(self, name: str, images: torch.Tensor, targets: torch.Tensor, taken: torch.Tensor) -> Judgement:
        """`taken`: where in the training data the images are, if they come from there."""
        classes = targets.unique()
        test = self._test.of(classes) if self._test is not None else None
        if test is not None:
            _check_has(self.card, test.labels, classes)
        read = self._read(_features_and_logits, name, images)
        features, logits = read[:, : -self.card.num_classes], read[:, -self.card.num_classes :]
        small = thumbnails(images)
        found: list[Found] = [alone(features, logits, targets)]
        if test is not None:
            found.append(beside(features, test.features))
        if test is not None and self._memory is not None:
            train, train_thumbnails = (known.of(classes, taken) for known in self._memory)
            found.append(memorised(features, train, test))
            if len(train_thumbnails.features):
                found.append(({"train_copies": _share(near_duplicates(small, train_thumbnails.features))}, []))
        return Judgement(
            n=len(features),
            accuracy=accuracy_of(logits, targets, self.card),
            near_duplicates=_share(near_duplicates(small)),
            bn_distance=bn_distance(self.net, self.card, map(_as_floats, images.split(_AT_ONCE))),
            notes=tuple(note for _, notes in found for note in notes),
            **{name: value for figures, _ in found for name, value in figures.items()},
        )

    def _known(self, name: str, data: LabelledImages, labels: torch.Tensor, index: torch.Tensor) -> Known:
        """The images of `data` at `index`, read."""
        return Known(self._read(penultimate_features, f"{len(index)} {name}", data.images[index]), labels, index)

    def _remember(
        self, test: Known, data: LabelledImages, labels: torch.Tensor, index: torch.Tensor
    ) -> tuple[Known, Known]:
        """As many training images as there are test images of each class, read; and all of them as thumbnails."""
        every = Known(thumbnails(data.images[index]), labels, index)
        some = as_many_of_each(labels, test.labels)
        name = f"{len(some)} real training images, to compare distances"
        features = self._read(penultimate_features, name, data.images[index[some]])
        return Known(features, labels[some], index[some]), every

    def _read(self, reader: Reader, name: str, images: torch.Tensor) -> torch.Tensor:
        """What `reader` makes of images, uint8 or float in [0, 1]; never all of them as floats at once."""
        if not len(images):
            return torch.empty(0, 0)
        return torch.cat([self._part(reader, part) for part in self._watch(name, images.split(_AT_ONCE))])

    def _part(self, reader: Reader, part: torch.Tensor) -> torch.Tensor:
        """A part, in halves where a GPU's memory is too small for it."""
        try:
            return reader(self.net, self.card, _as_floats(part))
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        return torch.cat([self._part(reader, half) for half in part.chunk(2)])


def _features_and_logits(net: nn.Module, card: ModelCard, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([penultimate_features(net, card, images), logits_of(net, card, images)], 1)


def _as_floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _share(which: torch.Tensor) -> float:
    return float(which.double().mean())


def of_classes(
    card: ModelCard, data: LabelledImages, classes: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(labels as the judge numbers them, where in the data they are) of the images of these classes.

    Raises ValueError as `Judge` does.
    """
    labels = _own_labels(card, data)
    index = torch.arange(len(labels))
    if classes is not None:
        index = index[torch.isin(labels, classes)]
        _check_has(card, labels[index], classes)
    return labels[index], index


def _check_has(card: ModelCard, labels: torch.Tensor, classes: torch.Tensor) -> None:
    """ValueError where real images lack some of the classes that are judged, which no distance would tell."""
    missing = classes[~torch.isin(classes, labels)].tolist()
    if missing:
        names = few(card.class_names[index] if card.class_names else str(index) for index in missing)
        raise ValueError(
            f"data: no real image is of {len(missing)} of the {len(classes)} classes that are judged ({names}); add "
            "them, or judge images of the other classes alone"
        )


def _own_labels(card: ModelCard, data: LabelledImages) -> torch.Tensor:
    """The labels as the judge numbers its classes: by `class_indices`, or other names in their order."""
    known = class_indices(card, data.class_names)
    if set(data.class_names) <= set(known):
        return data.numbered(known)
    if as_many_in_order(card, data.class_names):
        if card.class_names:
            pair = f"{data.class_names[0]!r} for {card.class_names[0]!r}"
            warnings.warn(
                f"data: no folder is named as a class of {card.name}, so they are taken in its order: {pair}",
                stacklevel=2,
            )
        return data.labels
    unknown = [name for name in data.class_names if name not in known]
    raise ValueError(
        f"data: {card.name} has no class {unknown[0]!r}; name the folders as its {card.num_classes} classes, or give "
        "one for each, none named as a class, in its order, or number them from 0"
    )
