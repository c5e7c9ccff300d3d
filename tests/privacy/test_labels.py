"""Labels that may be others than the network's are not called a network that knows nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_networks import CARD, textured

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.labels import by_order, doubt
from ensemble.privacy.members import membership

NAMELESS = replace(CARD, class_names=())


class Brightest(torch.nn.Module):
    """The class is the channel that is brightest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * x.mean((2, 3))


def members(shift: int, names: tuple[str, ...] = ("x", "y", "z"), seed: int = 1) -> LabelledImages:
    images = textured(120, seed)
    right = Brightest()(images.float() / 255 - torch.tensor(CARD.mean)[:, None, None]).argmax(1)
    return LabelledImages(images, (right + shift) % 3, names)


def test_labels_by_order_are_doubted_where_the_network_is_not_right_about_them() -> None:
    net = Brightest().eval()
    card = replace(NAMELESS, std=(1.0, 1.0, 1.0))
    assert not doubt(net, card, members(0))
    assert doubt(net, card, members(1)).startswith("The network is right about 0.0% of the members")
    named = replace(card, class_names=("x", "y", "z"))
    assert not doubt(net, named, members(1)) and not doubt(net, card, members(1, ("0", "1", "2")))
    assert by_order(card, ("x", "y", "z")) and not by_order(named, ("x", "y", "z"))


def test_two_classes_that_are_exchanged_among_many_are_told() -> None:
    net, card = Brightest().eval(), replace(NAMELESS, std=(1.0, 1.0, 1.0))
    fits = members(0)
    assert int(fits.labels.bincount()[1:].min()) >= 6
    many = torch.where(fits.labels[:, None] == 0, 200, 1)[:, 0]  # so that the two are a small part
    images = fits.images.repeat_interleave(many, 0)
    labels = torch.tensor([0, 2, 1])[fits.labels].repeat_interleave(many)
    told = doubt(net, card, LabelledImages(images, labels, ("x", "y", "z")))
    assert "reads y mostly as 2, z mostly as 1: do the labels fit?" in told and "9.1% of" not in told
    few = torch.cat([(labels == c).nonzero()[:k, 0] for c, k in ((0, 40), (1, 5), (2, 5))])
    assert not doubt(net, card, LabelledImages(images[few], labels[few], ("x", "y", "z")))


def test_a_class_that_is_confused_with_another_is_no_exchange() -> None:
    net, card = Brightest().eval(), replace(NAMELESS, std=(1.0, 1.0, 1.0))
    fits = members(0)
    kept = fits.labels != 1
    images, labels = fits.images[kept], fits.labels[kept]
    twos = (labels == 2).nonzero()[:, 0]
    labels[twos[::2]] = 1  # of which the network reads all as 2, as it does with the others
    assert not doubt(net, card, LabelledImages(images, labels, ("x", "y", "z")))


@pytest.mark.parametrize("shift", [0, 1])
def test_what_takes_labels_is_not_tested_then(shift: int) -> None:
    net, card = Brightest().eval(), replace(NAMELESS, std=(1.0, 1.0, 1.0))
    sets = members(shift), members(shift, seed=2)
    part = membership(net, card, *sets, None, None, None, 0, lambda text: None, doubt(net, card, sets[0]))
    finding = part.findings[1]
    assert (finding.word == "not tested") == ("loss_auc" not in part.figures) == (not part.scores) == (shift == 1)
    assert ("do the labels fit?" in finding.reading) == (shift == 1)
    assert ("120 members and 120 others; accuracy 100.0% and 100.0%" in finding.evidence) == (shift == 0)
    assert "120 members and 120 others" in part.findings[0].evidence
