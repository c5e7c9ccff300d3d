"""Whether members' labels are the network's: where its card names no classes, folders count in sorted order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.intervals import clopper_pearson
from ensemble.privacy.membership import answers
from models import ModelCard, class_indices


def by_order(card: ModelCard, names: Sequence[str]) -> bool:
    """Whether the card knows no classes of these names, so that their order alone says which is which."""
    return not {*names} <= class_indices(card, names).keys()


def doubt(net: nn.Module, card: ModelCard, members: LabelledImages) -> str:
    """Why labels by order may be others than the network's; empty for labels by name, and where they fit.

    They fit where it is right about half of the members, and surely about more than guessing is.
    """
    if not by_order(card, members.class_names):
        return ""
    hits, n = int(answers(net, card, members.images, members.labels).right.sum()), len(members)
    if hits >= n / 2 and clopper_pearson(hits, n)[0] > 1 / card.num_classes:
        return ""
    return (
        f"The network is right about {hits / n:.1%} of the members, by labels that are the folders' order alone: "
        "do the labels fit? To say which class is which, name the folders by the network's numbers, 0 to "
        f"{card.num_classes - 1}."
    )
