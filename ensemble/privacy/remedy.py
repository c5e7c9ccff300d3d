"""What re-estimating the statistics on plain reference images changes: measured, before and after."""

from __future__ import annotations

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.augmentation import BATCH, Explanation
from ensemble.privacy.candidates import Candidate
from ensemble.privacy.findings import Table
from ensemble.privacy.moments import moments_of, stored, with_stored
from ensemble.privacy.reestimation import Explained, explain
from ensemble.training.reading import evaluate
from models import ModelCard


def remedy(
    net: nn.Module,
    card: ModelCard,
    images: torch.Tensor,
    labelled: LabelledImages | None,
    found: Explanation,
    seed: int,
) -> Table:
    """A table of what the network says of images, and of its training, with its own and with re-estimated statistics.

    They are those of half of `labelled`, images that no candidate saw, without augmentation; accuracy is read on the
    other half. Without labels they are those of `images` (N, 3, H, W), uint8, and no accuracy is read.
    """
    read = None
    if labelled is not None and len(labelled) >= 4 * BATCH:
        half = len(labelled) // 2
        images = labelled.images[:half]
        read = labelled.subset(slice(half, None))
    size = min(BATCH, len(images) // 4)
    fresh = moments_of(net, Candidate().batches(images, card, size, seed + 1)).average()
    cleaned = with_stored(net, fresh)
    plain = {name: each for name, each in found.found.items() if name in found.explained.score}
    after = explain(stored(cleaned, [name for name, _ in found.stored.layers]), plain, seed)
    before = found.explained

    def accuracy(of: nn.Module) -> str:
        return "–" if read is None else f"{evaluate(of, card, read, torch.device('cpu')):.2%}"

    of = (
        f"accuracy on {len(read):,} other reference images"
        if read
        else "accuracy: not read, no others with the network's classes are left"
    )
    if read is None and labelled is not None:
        of = f"accuracy: not read, it takes {4 * BATCH} images that no candidate saw, and there are {len(labelled)}"
    return Table(
        "Re-estimating the statistics on plain reference images, which anyone who holds such images can do",
        ("", "as released", "re-estimated"),
        (
            (of, accuracy(net), accuracy(cleaned)),
            ("best candidate", _said(before), _said(after)),
            ("its distance / noise floor", f"{before.fit[before.best]:.2f}", f"{after.fit[after.best]:.2f}"),
        ),
    )


def _said(said: Explained) -> str:
    return said.best if said.explained else f"undecided ({said.best})"
