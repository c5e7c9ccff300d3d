"""Scores that tell members: hand values, NumPy and scipy twins, and leaks that were planted must show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small_networks import CARD, small_net, textured

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.estimate import Estimate
from ensemble.privacy.blind import blind_baseline
from ensemble.privacy.members import Shadows, _answer, _blind, closer_to_members, membership
from ensemble.privacy.membership import margin, tail_share
from ensemble.privacy.moments import bn_layers, moments_of, running_layers, stored, with_stored
from ensemble.privacy.overlap import apart
from ensemble.privacy.rates import auc, tpr_at
from ensemble.privacy.shadows import lira, lira_offline, rmia
from ensemble.privacy.tracing import (
    expected_auc,
    expected_auc_of_lengths,
    image_moments,
    released,
    tracing_scores,
)
from ensemble.training.reading import inputs_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_auc_is_mann_whitneys_with_ties_as_halves() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    expected = stats.mannwhitneyu(a.numpy(), b.numpy()).statistic / 12
    assert auc(a, b).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "n", "low", "high"),
    [(0.5, 12, 0.29, 0.71), (0.8, 12, 0.57, 0.92), (1.0, 12, 0.83, 1.0), (1.0, 6, 0.69, 1.0)],
)
def test_the_interval_is_newcombes(value: float, n: int, low: float, high: float) -> None:
    """Published figures of method 5; at 1 it has a width."""
    from ensemble.privacy.rates import _bound

    assert _bound(value, n, n, 0.0) == pytest.approx(low, abs=0.006)
    assert _bound(value, n, n, 1.0) == pytest.approx(high, abs=0.006)


def test_a_rate_without_ten_expected_false_positives_is_not_read() -> None:
    assert tpr_at(normal(100), normal(999), 0.01) is None
    found = tpr_at(torch.arange(1000).double() + 500, torch.arange(1000).double(), 0.01)
    assert found is not None and found.value == pytest.approx(0.51, abs=0.002) and found.low < 0.51 < found.high
    with pytest.raises(ValueError, match="empty"):
        auc(normal(0), normal(3))


def test_the_margin_is_the_log_odds_of_the_label() -> None:
    z, y = normal(5, 4), torch.tensor([0, 1, 2, 3, 0])
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(margin(z, y), (p / (1 - p)).log())


def test_the_tail_share() -> None:
    assert tail_share(torch.arange(100.0), torch.tensor([-5.0, -1.0, 50.0, 200.0])) == 0.5


def test_lira_is_scipys_log_ratio_with_one_deviation() -> None:
    inside = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
    values = torch.tensor([[3.0, 0.0], [5.0, 2.0], [1.0, 4.0], [3.0, 6.0]]).double()
    target = torch.tensor([4.5, 0.5])
    s = np.sqrt(2.0)  # each pair deviates by 1 from its mean: 4 squares, 2 degrees of freedom
    expected = [stats.norm.logpdf(x, i, s) - stats.norm.logpdf(x, o, s) for x, i, o in ((4.5, 4, 2), (0.5, 5, 1))]
    np.testing.assert_allclose(lira(target, values, inside), expected)
    with pytest.raises(ValueError, match="at least two"):
        lira(target, values[:1], inside[:1])


def test_lira_moves_the_other_mean_where_an_image_was_never_learned() -> None:
    inside = torch.tensor([[1, 0], [1, 0], [0, 0], [0, 0]]).bool()
    values = torch.tensor([[3.0, 0.0], [5.0, 2.0], [1.0, 0.0], [3.0, 2.0]]).double()
    found = lira(torch.tensor([4.5, 2.5]), values, inside)
    s_in, s_out = np.sqrt(2.0), np.sqrt((2 + 4) / 4)  # the second image's networks have four values, three free
    expected = stats.norm.logpdf(2.5, 3.0, s_in) - stats.norm.logpdf(2.5, 1.0, s_out)  # 1, and 2 more, as the first's
    np.testing.assert_allclose(float(found[1]), expected)


def test_rmia_is_a_rank_of_ratios() -> None:
    inside = torch.zeros(1, 3, dtype=torch.bool)
    found = rmia(torch.tensor([2.0, 0.0, 1.0]), torch.zeros(1, 3), inside, torch.tensor([False, True, True]))
    np.testing.assert_allclose(found, [1.0, 0.25, 0.75])  # an image of the population ties with itself
    with pytest.raises(ValueError, match="population"):
        rmia(torch.zeros(3), torch.zeros(1, 3), inside, torch.zeros(3, dtype=torch.bool))


def test_offline_lira_is_scipys_log_probability() -> None:
    inside = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]]).bool()
    values = torch.tensor([[3.0, 0.0, 5.0], [5.0, 2.0, 5.0], [1.0, 4.0, 5.0], [3.0, 1.0, 5.0]]).double()
    s = np.sqrt((2 + 2) / (1 + 2))  # the first's two networks outside and the second's three
    gap = ((4 - 2) + (4 - 1)) / 2  # the third was inside all: its mean outside is so much below 5
    expected = [stats.norm.logcdf(x, out, s) for x, out in ((4.5, 2.0), (0.5, 1.0), (4.0, 5 - gap))]
    np.testing.assert_allclose(lira_offline(torch.tensor([4.5, 0.5, 4.0]), values, inside), expected)
    alone = lira_offline(torch.tensor([4.0]), torch.tensor([[3.0]]), torch.tensor([[False]]))
    np.testing.assert_allclose(alone, stats.norm.logcdf(1.0))


def test_rmia_of_an_image_that_all_learned_takes_their_mean() -> None:
    """It does not rank before all others, as if no network gave it any probability."""
    inside = torch.tensor([[True, False, False]])
    found = rmia(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(1, 3), inside, torch.tensor([False, True, True]))
    np.testing.assert_allclose(found, [0.25, 0.25, 0.75])


def test_networks_of_the_recipe_find_members_that_a_threshold_does_not() -> None:
    """Images differ far more in difficulty than membership matters."""
    n, k = 400, 12
    hard = 4 * normal(2 * n, seed=1)
    inside = torch.rand(k, 2 * n, generator=torch.Generator().manual_seed(2)) < 0.5
    shadows = hard + inside * 1.5 + 0.7 * normal(k, 2 * n, seed=3)
    member = torch.arange(2 * n) < n
    target = hard + member * 1.5 + 0.7 * normal(2 * n, seed=4)
    plain, ratio = auc(target[:n], target[n:]), lira(target, shadows, inside)
    assert plain.value < 0.65 and auc(ratio[:n], ratio[n:]).low > 0.85
    relative = rmia(target, shadows, inside, ~member)
    assert auc(relative[:n], relative[n:]).value > plain.value


def test_tracing_meets_the_theory_of_released_means() -> None:
    d, n = 40, 100
    reference = normal(4000, d, seed=1)
    values = []
    for seed in range(20):
        members, others = normal(n, d, seed=10 + seed), normal(n, d, seed=100 + seed)
        scores = [tracing_scores(part, members.mean(0), reference) for part in (members, others)]
        values.append(auc(*scores).value)
    assert np.mean(values) == pytest.approx(expected_auc(d, n), abs=0.015)
    assert expected_auc(100, 25_000) == pytest.approx(0.52, abs=0.005)


def test_a_small_reference_costs_power_as_theory_has_it() -> None:
    n, size = 200, 300
    values = []
    for seed in range(40):
        reference, members, others = (normal(k, 30, seed=300 + 3 * seed + i) for i, k in enumerate((size, n, n)))
        scores = [tracing_scores(part, members.mean(0), reference) for part in (members, others)]
        values.append(auc(*scores).value)
    assert np.mean(values) == pytest.approx(expected_auc(30, n, size), abs=0.012)
    assert np.mean(values) < expected_auc(30, n) - 0.01


def test_images_of_unequal_lengths_are_told_less_and_theory_knows() -> None:
    def images(count: int, seed: int) -> torch.Tensor:
        lengths = torch.where(torch.arange(count) % 2 == 0, 0.4, 1.36)  # of mean square 1
        return lengths[:, None] * normal(count, 40, seed=seed)

    n, values, reference = 60, [], images(6000, 1)
    for seed in range(30):
        members, others = images(n, 10 + seed), images(n, 100 + seed)
        scores = [tracing_scores(part, members.mean(0), reference) for part in (members, others)]
        values.append(auc(*scores).value)
    squares = images(2000, 2).square().sum(1)
    assert np.mean(values) == pytest.approx(expected_auc_of_lengths(squares, n, 6000), abs=0.015)
    assert np.mean(values) < expected_auc(40, n, 6000) - 0.02
    same = expected_auc_of_lengths(torch.full((50,), 40.0), n)
    assert same == pytest.approx(expected_auc(40, n))


def test_tracing_does_not_depend_on_units() -> None:
    reference, images, mean = normal(300, 5, seed=1), normal(20, 5, seed=2), normal(5, seed=3)
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0, 100.0]).double()
    found = tracing_scores(images * scale, mean * scale, reference * scale)
    torch.testing.assert_close(found, tracing_scores(images, mean, reference))


def labelled(images: torch.Tensor, seed: int) -> LabelledImages:
    rng = torch.Generator().manual_seed(seed)
    return LabelledImages(images, torch.randint(0, 3, (len(images),), generator=rng), CARD.class_names)


def test_the_blind_baseline_sees_another_kind_of_images_and_nothing_else() -> None:
    same = blind_baseline(textured(150, 7), textured(150, 8))
    assert same.low <= 0.5 <= same.high
    assert blind_baseline(textured(150, 1), (textured(150, 2).float() * 0.8).to(torch.uint8)).low > 0.6


def test_membership_is_withheld_where_the_sets_differ() -> None:
    dark = labelled((textured(120, 2).float() * 0.7).to(torch.uint8), 2)
    part = membership(small_net(), CARD, labelled(textured(120, 1), 1), dark, None, 120, None, 0, lambda text: None)
    assert [finding.word for finding in part.findings] == ["not consistent", "not tested"]
    assert "loss_auc" not in part.figures and not part.scores


@pytest.fixture(scope="module")
def memorised() -> tuple[torch.nn.Module, LabelledImages, LabelledImages]:
    """A network that learned 100 images with random labels by heart, and whose statistics are theirs."""
    members, others = labelled(textured(100, 1), 1), labelled(textured(100, 2), 2)
    torch.manual_seed(0)
    net = small_net()
    inputs = inputs_of(members.images, CARD, torch.device("cpu"))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    net.train()
    for _ in range(150):
        loss = F.cross_entropy(net(inputs), members.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return with_stored(net, moments_of(net, [inputs])), members, others


def test_a_network_that_learned_by_heart_is_caught(
    memorised: tuple[torch.nn.Module, LabelledImages, LabelledImages],
) -> None:
    net, members, others = memorised
    part = membership(net, CARD, members, others, textured(600, 3), 100, None, 0, lambda text: None)
    by_question = {finding.question: finding for finding in part.findings}
    loss = by_question["Does the network know its members by their loss?"]
    assert loss.word in ("shown", "indicated") and loss.value is not None and loss.value > 0.7
    assert part.figures["accuracy_gap"] > 0.3  # type: ignore[operator]
    traced = by_question["Do the BatchNorm statistics tell members?"]
    assert traced.interval is not None and traced.interval[0] > 0.5, traced


def test_the_accuracy_gap_is_that_of_accuracies_however_unsure_the_network_is(
    memorised: tuple[torch.nn.Module, LabelledImages, LabelledImages],
) -> None:
    net, members, others = memorised
    inputs, targets = (
        [inputs_of(part.images, CARD, torch.device("cpu")) for part in (members, others)],
        (members, others),
    )
    right = [(net(x).argmax(1) == part.labels).double().mean() for x, part in zip(inputs, targets, strict=True)]
    for unsure in (1.0, 100.0):
        cold = torch.nn.Sequential(net, Divided(unsure))
        part = membership(cold, CARD, members, others, None, None, None, 0, lambda text: None)
        assert part.figures["accuracy_gap"] == pytest.approx(float(right[0] - right[1]))


class Divided(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / self.by


def test_an_untrained_network_is_not_accused() -> None:
    net = small_net()
    inputs = inputs_of(textured(600, 9), CARD, torch.device("cpu"))
    net = with_stored(net, moments_of(net, [inputs]))
    members, others = labelled(textured(150, 7), 1), labelled(textured(150, 8), 2)
    part = membership(net, CARD, members, others, textured(400, 3), None, None, 0, lambda text: None)
    assert {finding.word for finding in part.findings} == {"not distinguishable here"}
    assert stored(net, bn_layers(net)).mean.shape == (1, 60)


class Reversed(torch.nn.Module):
    """Layers registered in the reverse of the order in which they run, one in its head, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.head = torch.nn.BatchNorm2d(5), torch.nn.BatchNorm1d(16)
        self.second, self.first = torch.nn.BatchNorm2d(16), torch.nn.BatchNorm2d(12)
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(3, 12, 3), torch.nn.Conv2d(12, 16, 3)])
        self.linear = torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.convs[1](self.first(self.convs[0](x)).relu())).relu()
        return self.linear(self.head(x.mean((2, 3))))


def test_released_means_are_those_of_the_layers_they_are_compared_at() -> None:
    torch.manual_seed(0)
    images = textured(200, 1)
    net = Reversed().eval()
    inputs = inputs_of(images, CARD, torch.device("cpu"))
    net = with_stored(net, moments_of(net, [inputs]))
    seen = image_moments(net, CARD, images)
    assert running_layers(net, CARD) == ["head", "second", "first"] and seen.shape == (200, 2 * (16 + 16 + 12))
    # at the first layer that runs nothing differs between training and eval mode
    at_first = slice(32, 44)
    stored_there = released(stored(net, running_layers(net, CARD)))
    torch.testing.assert_close(seen[:, :44].mean(0)[at_first], stored_there[:44][at_first], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen, image_moments(net, CARD, inputs))
    part = membership(
        net,
        CARD,
        labelled(images[:100], 1),
        labelled(images[100:], 2),
        textured(300, 3),
        None,
        None,
        0,
        lambda text: None,
    )
    assert "tracing_auc" in part.figures


def test_what_two_sets_share_is_left_out_or_refused() -> None:
    a, b, c = (labelled(textured(100, seed), seed) for seed in (1, 2, 3))
    reference, members, others, said = apart(c, a, b)
    assert (reference, members, others, said) == (c, a, b, [])
    few = LabelledImages(torch.cat([b.images, a.images[:5]]), torch.zeros(105, dtype=torch.long), CARD.class_names)
    known = LabelledImages(torch.cat([c.images, few.images[:30]]), torch.zeros(130, dtype=torch.long), CARD.class_names)
    reference, members, others, said = apart(known, a, few)
    assert reference is not None and members is not None and others is not None
    assert torch.equal(reference.images, c.images)
    assert torch.equal(members.images, a.images[5:]) and torch.equal(others.images, b.images)
    assert said == [
        "5 members and 5 non-members that are in both", "30 reference images that are in either",
    ]  # fmt: skip
    assert apart(a.subset(slice(6, 7)), a, few)[3] == [
        "5 members and 5 non-members that are in both", "1 reference image that is in either",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--members, --non-members: 90 members and 90 non-members are in both"):
        apart(None, a, a.subset(slice(90)))
    assert apart(a, None, None) == (a, None, None, [])


def test_an_image_that_is_there_twice_counts_once() -> None:
    """Else a network of the recipe could learn the one and not the other, and an interval count both."""
    a, b, c = (labelled(textured(100, seed), seed) for seed in (1, 2, 3))
    twice = replace(a, images=a.images.repeat(2, 1, 1, 1), labels=a.labels.repeat(2))
    more = replace(b, images=b.images[[*range(100), 7]], labels=b.labels[[*range(100), 7]])
    reference, members, others, said = apart(twice, more, c)
    assert reference is not None and members is not None and others is not None
    assert torch.equal(members.images, b.images) and torch.equal(reference.images, a.images) and others is c
    assert said == ["1 member that repeats another", "100 reference images that repeat another"]


def test_below_chance_is_no_all_clear() -> None:
    assert _blind(Estimate(0.26, 0.23, 0.29), "").word == "undecided"
    assert "would have been seen" not in _blind(Estimate(0.26, 0.23, 0.29), "").reading
    assert "below the 0.5 of chance" in _answer(Estimate(0.3, 0.2, 0.4), 0.7)
    same = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert closer_to_members(same, same, same).value == 0.5


def test_shadow_attacks_are_findings_of_their_own() -> None:
    members, others = labelled(textured(80, 1), 1), labelled(textured(80, 2), 2)
    rng = torch.Generator().manual_seed(0)
    shadows = Shadows(torch.randn(4, 160, generator=rng), torch.rand(4, 160, generator=rng) < 0.5)
    part = membership(small_net(), CARD, members, others, None, None, shadows, 0, lambda text: None)
    assert {"lira_auc", "rmia_auc", "loss_auc"} <= part.figures.keys()
    assert set(part.scores) == {"loss", "lira", "rmia"}
