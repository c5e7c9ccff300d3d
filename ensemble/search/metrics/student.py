"""What a student learns from a point's images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from ensemble.data.labelled import LabelledImages
from ensemble.image.pictures import to_eight_bits
from ensemble.machine.hardware import set_up
from ensemble.runs.job import job
from ensemble.search.metric import Kit, Measure, Metric
from ensemble.training.augment import Augmentation
from ensemble.training.loop import train
from ensemble.training.reading import evaluate
from ensemble.training.schedule import Schedule
from models import check_reads, model_card, untrained_model


@dataclass(frozen=True)
class Student(Metric, kind="student"):
    """The accuracy, in [0, 1], on held-out images of a network that was trained from scratch on a point's images.

    The labels of training are the targets. The held-out images were made by the unchanged recipe from other seeds, and
    what counts is how the judge reads them, also where that is not their target: no real image takes part. The
    training loop is that of `invert.py train`, with crops and flips and a fixed number of steps, whatever the number
    of images; the last step's network is judged.
    """

    model: str | None = None
    """The student; by default ResNet-20 with the judge's number of classes."""
    steps: PositiveInt = 300
    """Rounded to whole epochs."""
    batch_size: Annotated[int, Field(ge=2)] = 50
    lr: PositiveFloat = 0.05
    """Peak learning rate."""

    def check(self, kit: Kit) -> None:
        """ValueError for a student that is unknown, has other classes than the judge, or cannot read such images."""
        card, judge = model_card(self._spec(kit)), model_card(kit.judge)
        if card.num_classes != judge.num_classes:
            raise ValueError(
                f"student: {self._spec(kit)} has {card.num_classes} classes and the judge has {judge.num_classes}; "
                "name another, as --metric '{kind: student, model: NAME:num_classes=N@random}'"
            )
        net, card = untrained_model(self._spec(kit), 0)
        size = job(kit.recipe, None).plan.size
        check_reads(f"student: {self._spec(kit)}", net, replace(card, input_size=size), learns=True)

    def measure(self, kit: Kit) -> Measure:
        held_out = kit.held_out()

        def accuracy(images: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
            return self._accuracy(kit, held_out, images, targets, seed)

        return accuracy

    def _accuracy(
        self, kit: Kit, held_out: LabelledImages, images: torch.Tensor, targets: torch.Tensor, seed: int
    ) -> float:
        if len(images) < 2:
            raise ValueError("student: it takes at least two images of a point; set images_per_class")
        set_up("fp32", kit.device)
        net, card = untrained_model(self._spec(kit), seed)
        batch = min(self.batch_size, len(images))
        net = train(
            net,
            card,
            LabelledImages(to_eight_bits(images), targets, held_out.class_names),
            held_out.subset(slice(1)),
            schedule=Schedule(
                epochs=max(1, round(self.steps / (len(images) // batch))),
                batch_size=batch,
                lr=self.lr,
            ),
            augmentation=Augmentation(crop_padding=min(4, images.shape[2] // 8)),
            seed=seed,
            device=kit.device,
            compile_net=False,
        )
        return evaluate(net, card, held_out, kit.device)

    def _spec(self, kit: Kit) -> str:
        return self.model or f"resnet20_cifar:num_classes={model_card(kit.judge).num_classes}@random"
