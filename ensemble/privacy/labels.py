"""Whether members' labels are the network's: where its card names no classes, folders count in sorted order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.classification import logits_of
from ensemble.evaluation.intervals import clopper_pearson
from models import ModelCard, class_indices

_LISTED = 4


def by_order(card: ModelCard, names: Sequence[str]) -> bool:
    """Whether the card knows no classes of these names, so that their order alone says which is which."""
    return not {*names} <= class_indices(card, names).keys()


def doubt(net: nn.Module, card: ModelCard, members: LabelledImages) -> str:
    """Why labels by order may be others than the network's; empty for labels by name, and where they fit.

    They fit where it is right about half of the members, and surely about more than guessing is, and reads no class
    surely mostly as one other.
    """
    if not by_order(card, members.class_names):
        return ""
    reads = torch.cat([logits_of(net, card, part.float() / 255).argmax(1) for part in members.images.split(500)])
    n = len(members)
    hits = int((reads == members.labels).sum())
    others = _read_as_others(reads, members)
    if hits >= n / 2 and clopper_pearson(hits, n)[0] > 1 / card.num_classes and not others:
        return ""
    listed = [f"{name} mostly as {number}" for name, number in others[:_LISTED]]
    listed += [f"{len(others) - _LISTED} more as others"] if len(others) > _LISTED else []
    return (
        f"The network is right about {hits / n:.1%} of the members, by labels that are the folders' order alone"
        f"{', and reads ' + ', '.join(listed) if listed else ''}: do the labels fit? To say which class is which, name "
        f"the folders by the network's numbers, 0 to {card.num_classes - 1}."
    )


def _read_as_others(reads: torch.Tensor, members: LabelledImages) -> list[tuple[str, int]]:
    """The classes of which more than half is surely read as one other, with the number of that.

    Not where the other's own images are read as itself: so a network does that confuses two, and labels fit.
    """
    sure: dict[int, int] = {}
    for label in members.labels.unique().tolist():
        own = reads[members.labels == label]
        most = int(own.mode().values)
        if clopper_pearson(int((own == most).sum()), len(own))[0] > 0.5:
            sure[label] = most
    others = {label: most for label, most in sure.items() if most != label and sure.get(most) != most}
    return [(members.class_names[label], most) for label, most in others.items()]
