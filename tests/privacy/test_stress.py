"""A network that learned by heart fires both attacks; one that learned nothing fires none."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from small_networks import CARD, small_net, textured
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.moments import moments_of, with_stored
from ensemble.privacy.study.stress import stressed
from ensemble.privacy.tracing import expected_auc
from ensemble.training.reading import inputs_of


def labelled(n: int, seed: int) -> LabelledImages:
    labels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    return LabelledImages(textured(n, seed), labels, CARD.class_names)


@pytest.fixture(scope="module")
def learned_by_heart() -> nn.Module:
    """60 images with labels drawn at random."""
    members, net = labelled(60, 1), small_net().train()
    inputs = inputs_of(members.images, CARD, torch.device("cpu"))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    for _ in range(300):
        loss = F.cross_entropy(net(inputs), members.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def test_a_network_that_learned_by_heart_fires(learned_by_heart: nn.Module) -> None:
    before = {name: value.clone() for name, value in learned_by_heart.state_dict().items()}
    found = stressed(learned_by_heart, CARD, labelled(60, 1), labelled(150, 2), textured(600, 3))
    assert found["fires"] and found["train_accuracy"] == 1.0 and found["other_accuracy"] < 0.6
    assert found["loss_auc"] >= 0.9 and found["tracing_auc"] >= 0.6
    for name in ("loss", "tracing"):
        low, high = found[f"{name}_auc_interval"]  # type: ignore[misc]
        assert 0.5 < low <= found[f"{name}_auc"] <= high
    assert found["tracing_auc"] == pytest.approx(found["tracing_expected"], abs=0.1)
    assert json.loads(json.dumps(found)) == found
    assert all(torch.equal(before[name], value) for name, value in learned_by_heart.state_dict().items())


def test_a_network_that_learned_nothing_does_not() -> None:
    """Its statistics, taken anew on the members, still are theirs."""
    net = small_net()
    net = with_stored(net, moments_of(net, [inputs_of(textured(300, 9), CARD, torch.device("cpu"))]))
    found = stressed(net, CARD, labelled(60, 1), labelled(150, 2), textured(600, 3))
    low, high = found["loss_auc_interval"]  # type: ignore[misc]
    assert not found["fires"] and low < 0.5 < high
    assert found["tracing_expected"] == expected_auc(60, 60, 600)
