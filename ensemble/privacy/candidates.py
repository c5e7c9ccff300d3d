"""Ways in which a network's training images may have been prepared: what its statistics are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ensemble.image.recompression import recompressed
from ensemble.machine.rng import generator
from ensemble.training.augment import crop_and_flip, cutout, padded_crop, rectangle
from ensemble.training.reading import black_pixel
from ensemble.training.recipe import TrainingRecipe
from models import ModelCard, network_input

Crop = Literal["none", "mirrored", "black", "mean"]
Mix = Literal["none", "cutmix", "mixup", "cutout"]

NORMALISATIONS = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's mean, std 0.2": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "mean 0.5, std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mean 0, std 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""What people normalise by."""
SCALES = {f"{factor:g} times the card's std": factor for factor in (0.7, 0.85, 1.2, 1.4)}
"""In a network of few BatchNorm layers a larger std looks like mixup: the first layer's variance is smaller."""
CLAIMED = "as claimed"
_CROPS = {
    "none": "no crops",
    "mirrored": "crops with mirrored borders",
    "black": "crops with black borders",
    "mean": "crops with borders of the mean",
}
MIXES: dict[Mix, str] = {"cutmix": "CutMix", "mixup": "mixup", "cutout": "cutout"}


@dataclass(frozen=True)
class Candidate:
    """One way of preparing images: crops by up to an eighth of the side and flips, or neither; one kind of mixing in
    every batch (alpha = 1; cutout: half the side); a normalisation."""

    crop: Crop = "none"
    mix: Mix = "none"
    normalisation: str = ""
    """A key of NORMALISATIONS or SCALES; empty: the card's."""
    jpeg: int = 0
    """Quality of a recompression; 0: none."""

    @property
    def as_carded(self) -> bool:
        """Whether images are prepared as the network's card says."""
        return not self.normalisation and not self.jpeg

    @property
    def name(self) -> str:
        parts = [_CROPS[self.crop]]
        if self.mix != "none":
            parts.append(MIXES[self.mix])
        if self.normalisation:
            parts.append(self.normalisation)
        if self.jpeg:
            parts.append(f"JPEG {self.jpeg}")
        return ", ".join(parts)

    def with_mix(self, mix: Mix) -> Candidate:
        """These crops and that mix; with borders of the mean none is tried, black ones are nearest."""
        return Candidate("black" if self.crop == "mean" else self.crop, mix)

    def batches(self, images: torch.Tensor, card: ModelCard, size: int, seed: int) -> Iterator[torch.Tensor]:
        """Whole batches of `size` of the images, uint8 (N, 3, H, W), as the network would have taken them.

        With one seed all candidates that crop have the same images, shifts and flips.
        """
        rng = generator(seed, "audit")
        order = torch.randperm(len(images), generator=rng)
        draws, mixing = generator(seed, "audit crops"), generator(seed, "audit mixing")
        for i, index in enumerate(order.split(size)):
            if len(index) < size:
                return
            batch = images[index]
            if self.jpeg:
                batch = recompressed(batch, self.jpeg)
            yield self._mixed(self._cropped(batch.float() / 255, self._card(card), draws), _spread(i), mixing)

    def _card(self, card: ModelCard) -> ModelCard:
        if not self.normalisation:
            return card
        if factor := SCALES.get(self.normalisation):
            return replace(card, std=tuple(factor * value for value in card.std))
        mean, std = NORMALISATIONS[self.normalisation]
        return replace(card, mean=mean, std=std)

    def _cropped(self, batch: torch.Tensor, card: ModelCard, rng: torch.Generator) -> torch.Tensor:
        """The batch, RGB in [0, 1], cropped, flipped and normalised."""
        padding = batch.shape[-1] // 8
        if self.crop == "none":
            return network_input(batch, card)
        if self.crop == "mirrored":
            return crop_and_flip(network_input(batch, card), padding, True, rng)
        if self.crop == "black":
            return network_input(padded_crop(batch, padding, True, rng), card)
        return padded_crop(network_input(batch, card), padding, True, rng)

    def _mixed(self, batch: torch.Tensor, share: float, rng: torch.Generator) -> torch.Tensor:
        if self.mix == "cutout":
            return cutout(batch, batch.shape[-1] // 2, rng)
        if self.mix == "mixup":
            return share * batch + (1 - share) * batch[torch.randperm(len(batch), generator=rng)]
        return cut_and_mixed(batch, share, rng) if self.mix == "cutmix" else batch


def _spread(i: int) -> float:
    """Shares of batches, uniform in [0, 1] as Beta(1, 1) is, but evenly spread: drawn ones would need many batches."""
    return (0.5 + i * (5**0.5 - 1) / 2) % 1.0


def cut_and_mixed(images: torch.Tensor, share: float, rng: torch.Generator) -> torch.Tensor:
    """Images (N, 3, H, W) with a rectangle of `1 - share` of the area, in one place, from another image (CutMix)."""
    rows, columns = rectangle(images.shape[2], images.shape[3], 1 - share, rng)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[torch.randperm(len(images), generator=rng)][:, :, rows, columns]
    return mixed


@dataclass(frozen=True)
class Claimed:
    """What a training recipe leaves in the statistics: its augmentation, or, where it takes them anew from unaugmented
    images at the end (`recalibrate_bn`), none; with the mean and std of its own network's card."""

    recipe: TrainingRecipe
    card: ModelCard
    name: str = CLAIMED

    def batches(self, images: torch.Tensor, card: ModelCard, size: int, seed: int) -> Iterator[torch.Tensor]:
        """As `Candidate.batches`."""
        card = replace(card, mean=self.card.mean, std=self.card.std)
        rng, black = generator(seed, "claimed"), black_pixel(card)
        for batch in Candidate().batches(images, card, size, seed):
            if self.recipe.schedule.recalibrate_bn:
                yield batch
            else:
                yield self.recipe.augmentation(batch, torch.arange(len(batch)), rng, black)[0]


def augmentations() -> list[Candidate]:
    """Every crop and mix, with the card's normalisation."""
    crops: tuple[Crop, ...] = ("none", "mirrored", "black")
    mixes: tuple[Mix, ...] = ("none", "cutmix", "mixup", "cutout")
    return [*(Candidate(crop, mix) for crop in crops for mix in mixes), Candidate("mean")]


def candidates(card: ModelCard) -> list[Candidate]:
    """All that are tried: augmentations, then other normalisations without mixes, then JPEG."""
    others = [name for name, values in NORMALISATIONS.items() if len(card.mean) == 3 and not _same(values, card)]
    crops: tuple[Crop, ...] = ("none", "black")
    prepared = [Candidate(crop, normalisation=name) for name in [*others, *SCALES] for crop in crops]
    return [*augmentations(), *prepared, Candidate(jpeg=50)]


def _same(values: tuple[tuple[float, ...], tuple[float, ...]], card: ModelCard) -> bool:
    """Equal to two digits, as people write them."""
    pairs = zip((*values[0], *values[1]), (*card.mean, *card.std), strict=True)
    return all(abs(a - b) < 0.006 for a, b in pairs)
