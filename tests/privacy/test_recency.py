"""The order of batches against the loop's own; running statistics tell the last batches, re-estimated ones do not."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_networks import CARD, small_net, textured
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.machine.rng import generator
from ensemble.privacy.moments import bn_layers, moments_of, stored
from ensemble.privacy.study.recency import last_batches, recency_auc
from ensemble.training.augment import MixedLabels
from ensemble.training.loop import train
from ensemble.training.reading import inputs_of
from ensemble.training.schedule import Schedule


class Recorder:
    """An augmentation that does nothing and writes down whose images it was given."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, black: torch.Tensor
    ) -> tuple[torch.Tensor, MixedLabels]:
        self.seen.append(labels)
        return images, (labels, labels, 1.0)


def test_the_last_batches_are_those_of_the_loop() -> None:
    images = textured(45)
    data, recorder = LabelledImages(images, torch.arange(45) % 3, CARD.class_names), Recorder()
    train(
        small_net(),
        CARD,
        data,
        data,
        schedule=Schedule(epochs=2, batch_size=8, lr=0.01, precision="fp32", recalibrate_bn=False),
        augmentation=recorder,  # type: ignore[arg-type]
        seed=7,
        device=torch.device("cpu"),
        compile_net=False,
    )
    late, early = last_batches(7, 1, 45, 8, 2)
    assert len(recorder.seen) == 10  # five whole batches an epoch
    assert torch.equal(late, torch.cat(recorder.seen[8:])) and torch.equal(early, torch.cat(recorder.seen[5:8]))


@pytest.mark.parametrize("batches", [0, 5, 6])
def test_there_are_late_and_early_batches_or_a_mistake_is_told(batches: int) -> None:
    with pytest.raises(ValueError, match=f"last {batches} of 5 batches"):
        last_batches(0, 0, 45, 8, batches)


COUNT, SIZE, EPOCH, SEED = 1200, 16, 3, 5


@cache
def members() -> torch.Tensor:
    return textured(COUNT, seed=1)


@cache
def seen() -> nn.Module:
    """A network that saw the members of an epoch in the loop's order, without learning: only statistics moved."""
    net, inputs = small_net().train(), inputs_of(members(), CARD, torch.device("cpu"))
    order = torch.randperm(COUNT, generator=generator(SEED, "epoch", EPOCH))
    with torch.no_grad():
        for index in order.split(SIZE):
            net(inputs[index])
    return net.eval()


def test_running_statistics_tell_the_last_batches_and_re_estimated_ones_do_not() -> None:
    late, early = last_batches(SEED, EPOCH, COUNT, SIZE, 10)
    inputs = inputs_of(members(), CARD, torch.device("cpu"))
    own = stored(seen(), bn_layers(seen()))
    anew = moments_of(seen(), inputs.split(SIZE)).average()
    found = [recency_auc(seen(), CARD, members(), late, early, textured(800, 2), moments) for moments in (own, anew)]
    assert found[0].low > 0.55, found
    assert found[1].low < 0.5 < found[1].high, found


def darker(images: torch.Tensor) -> torch.Tensor:
    return (images.float() * 0.8).to(torch.uint8)


def test_a_reference_augmented_alike_takes_out_what_augmentation_shifts() -> None:
    late, early = torch.arange(200), torch.arange(200, 600)
    reference = textured(800, 2)
    own = moments_of(seen(), [inputs_of(darker(members()[late]), CARD, torch.device("cpu"))])
    plain, alike = (
        recency_auc(seen(), CARD, members(), late, early, images, own) for images in (reference, darker(reference))
    )
    assert alike.low > 0.55 and alike.value > plain.value + 0.03, (plain, alike)
