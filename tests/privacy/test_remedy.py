"""What re-estimation changes: where no accuracy is read, the table says why."""

from __future__ import annotations

import pytest
import torch
from small_networks import CARD, small_net, textured

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.augmentation import Explanation
from ensemble.privacy.candidates import Candidate
from ensemble.privacy.findings import Part
from ensemble.privacy.moments import moments_of, stored
from ensemble.privacy.reestimation import explain
from ensemble.privacy.remedy import remedy


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (0, "accuracy: not read, no others with the network's classes are left"),
        (100, "accuracy: not read, it takes 512 images that no candidate saw, and there are 100"),
        (600, "accuracy on 300 other reference images"),
    ],
)
def test_the_accuracy_that_is_not_read(others: int, said: str) -> None:
    net, images = small_net(), textured(128, 1)
    tried = [Candidate(), Candidate("black")]
    found = {c.name: moments_of(net, c.batches(images, CARD, 32, 0)) for c in tried}
    own = stored(net, [name for name, _ in found["no crops"].layers])
    explained = Explanation(Part(), explain(own, found), found, own, None)
    labelled = LabelledImages(textured(others, 2), torch.zeros(others, dtype=torch.long), CARD.class_names)
    row = remedy(net, CARD, images, labelled if others else None, explained, 0).rows[0]
    assert row[0] == said and (row[1] == "–") == (others < 512)
