"""Membership over a bank: leaks that were planted show, others do not, and orders are those of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist, mean

import pytest
import torch
from small_networks import CARD, small_net, textured

from ensemble.data.labelled import LabelledImages
from ensemble.privacy.candidates import Candidate
from ensemble.privacy.moments import moments_of
from ensemble.privacy.study.canaries import mislabelled
from ensemble.privacy.study.leave_one_out import attacks, null_rows
from ensemble.privacy.study.planted import theory_line
from ensemble.privacy.study.recency import last_batches, recency_auc
from ensemble.privacy.study.stress import stressed
from ensemble.training.augment import Augmentation
from ensemble.training.loop import train
from ensemble.training.schedule import Schedule

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bank(gap: float, networks: int = 8, images: int = 2500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Margins with `gap` deviations between members and others, and images that differ in difficulty by far more."""
    inside = torch.rand(networks, images, generator=torch.Generator().manual_seed(1)) < 0.5
    canaries = torch.arange(images) < 300
    margins = normal(networks, images, seed=2) + gap * inside + 3 * normal(1, images, seed=3)
    return margins + 2 * gap * inside * canaries, inside, canaries


def means(rows: list[dict], key: str = "auc") -> Mapping[str, float]:
    names = {row["attack"] for row in rows if row.get(key) is not None}
    return {name: mean(row[key] for row in rows if row["attack"] == name) for name in names}


def test_ratios_of_likelihoods_find_a_planted_gap_and_a_threshold_hardly() -> None:
    margins, inside, canaries = bank(2.0)
    found = means(attacks(margins, inside, canaries))
    ideal = NormalDist().cdf(2 / 2**0.5)
    assert ideal - 0.08 < found["lira"] < ideal + 0.01  # means are of some seven shadows
    assert found["lira"] > found["lira_offline"] > found["loss"] + 0.1 > 0.6
    assert found["rmia_4"] > found["rmia_1"] - 0.02 and "rmia_11" not in found
    canary = means(attacks(margins, inside, canaries), "canary_auc")
    assert canary["lira"] > found["lira"] + 0.02


def test_memberships_of_another_network_show_nothing() -> None:
    rows = null_rows(*bank(2.0))
    for name, value in means(rows).items():
        assert value == pytest.approx(0.5, abs=0.03), name


def test_rates_are_read_where_enough_false_positives_are_to_be_expected() -> None:
    rows = attacks(*bank(2.0))
    assert all(row["tpr_1pct"] is not None and row["tpr_0_1pct"] is None for row in rows if row["attack"] == "lira")


def test_canaries_have_wrong_labels_and_others_their_own() -> None:
    data = LabelledImages(textured(60), torch.arange(60) % 3, ("a", "b", "c"))
    made, marked = mislabelled(data, 20, seed=0)
    assert int(marked.sum()) == 20 and torch.equal(made.labels != data.labels, marked)
    assert not mislabelled(data, 0, seed=0)[1].any()
    with pytest.raises(ValueError, match="canaries"):
        mislabelled(data, 61, seed=0)


def test_the_last_batches_are_those_of_the_loop() -> None:
    seen: list[torch.Tensor] = []

    def recorded(images, labels, rng, black):  # type: ignore[no-untyped-def]
        seen.append(labels.clone())
        return images, (labels, labels, 1.0)

    data = LabelledImages(textured(50), torch.arange(50) % 3, ("a", "b", "c"))
    schedule = Schedule(epochs=2, batch_size=8, precision="fp32", recalibrate_bn=False)
    train(
        *(small_net(), CARD, data, data),
        schedule=schedule,
        augmentation=recorded,  # type: ignore[arg-type],
        seed=5,
        device=CPU,
        compile_net=False,
    )
    late, early = last_batches(5, 1, 50, 8, 2)
    assert torch.equal(late.flip(0), torch.cat(seen[-2:])) and torch.equal(early.flip(0), torch.cat(seen[6:-2]))
    with pytest.raises(ValueError, match="leave none"):
        last_batches(5, 1, 50, 8, 6)


def test_planted_means_are_on_the_line_of_theory() -> None:
    (row,) = theory_line(small_net(), CARD, textured(400, seed=1), textured(600, seed=2), counts=(100, 900), repeats=3)
    assert row["n"] == 100 and sum(row["auc"]) / 3 == pytest.approx(row["expected"], abs=0.08)
    assert row["expected"] > 0.6


def test_recency_is_told_by_the_last_batches_mean_alone() -> None:
    net, late, early = small_net(), textured(100, seed=3), textured(100, seed=4)
    reference = textured(600, seed=2)

    def told(images: torch.Tensor) -> float:
        moments = moments_of(net, Candidate().batches(images, CARD, 50, 0)).average()
        return recency_auc(net, CARD, late, early, reference, moments).value

    assert told(late) > 0.6 > told(torch.cat([late, early])) and told(early) < 0.4


def test_a_network_that_learned_by_heart_fires() -> None:
    def drawn(seed: int, count: int = 24) -> LabelledImages:
        labels = torch.randint(3, (count,), generator=torch.Generator().manual_seed(seed))
        return LabelledImages(textured(count, seed=seed), labels, ("a", "b", "c"))

    members, others = drawn(1), drawn(2)
    schedule = Schedule(epochs=200, batch_size=12, lr=0.2, precision="fp32", recalibrate_bn=False)
    net = train(
        *(small_net(), CARD, members, others),
        schedule=schedule,
        augmentation=Augmentation(crop_padding=0, flip=False),
        seed=0,
        device=CPU,
        compile_net=False,
    )
    found = stressed(net, CARD, members, others, textured(600, seed=9))
    assert found["train_accuracy"] > 0.9 > found["test_accuracy"]
    assert found["loss_auc"] > 0.9 and found["tracing_auc"] > 0.6
