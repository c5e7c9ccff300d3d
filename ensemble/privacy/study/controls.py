"""Controls of a study: where image detectors must fire, and where they must not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble.evaluation.estimate import Estimate
from ensemble.image.pictures import to_eight_bits
from ensemble.image.recompression import recompressed
from ensemble.machine.rng import generator
from ensemble.privacy.candidates import cut_and_mixed
from ensemble.privacy.rates import auc
from ensemble.privacy.study.cells import Cells
from ensemble.privacy.study.contrasts import Scores
from ensemble.privacy.study.phase import phase_randomised

FIRES = 0.95
"""The AUROC from which something planted counts as found."""
_GROUPS = 20
_MIX_BATCH = 8
"""Images that share a rectangle: in a group of a hundred there are a dozen rectangles."""


@dataclass(frozen=True)
class Control:
    """A comparison of groups of images, each as many as a network's inversions."""

    name: str
    detector: str
    value: Estimate
    fires: bool
    """Whether it should."""

    @property
    def kept(self) -> bool:
        """Whether it did as it should: at least FIRES, or an interval that holds 0.5."""
        return self.value.value >= FIRES if self.fires else self.value.holds(0.5)


def controls(cells: Cells, scores: Scores) -> list[Control]:
    """All of them; groups of real images are drawn from those that the classifier of mixes did not see."""
    bank = cells.bank
    recipe = bank.recipe
    real = _groups(bank.test.images[1::2].float() / 255, recipe.inversions.images, recipe.seed)
    rng = generator(recipe.seed, "controls")
    mixed = [torch.cat([_mixed(part, rng) for part in group.split(_MIX_BATCH)]) for group in real[::2]]
    plain = real[1::2]
    jpeg = [recompressed(to_eight_bits(group), 50).float() / 255 for group in real[::2]]
    made = [cells.folder.tensors(f"images_{t.name}_stored")["images"] for t in scores.teachers(recipe.mixed)]
    base = [cells.folder.tensors(f"images_{t.name}_stored")["images"] for t in scores.teachers(recipe.plain)]
    phased = [[phase_randomised(images, i) for i, images in enumerate(part)] for part in (made, base)]
    asked = (
        ("real images with CutMix against plain ones", mixed, plain, True),
        ("real images recompressed (JPEG 50) against plain ones", jpeg, plain, False),
        ("inversions of both arms, phases drawn at random", phased[0], phased[1], False),
    )
    found = []
    for name, ones, others, fires in asked:
        looked = [[cells.looked_at(group) for group in part] for part in (ones, others)]
        for detector, key in (("I1", "seam"), ("I2", "mixes")):
            value = auc(*(torch.tensor([row[key] for row in part]) for part in looked))
            found.append(Control(name, detector, value, fires))
    return found


def _mixed(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return cut_and_mixed(images, float(torch.rand(1, generator=rng)), rng)


def _groups(images: torch.Tensor, size: int, seed: int) -> list[torch.Tensor]:
    rng = generator(seed, "groups")
    return [images[torch.randperm(len(images), generator=rng)[:size]] for _ in range(2 * _GROUPS)]
