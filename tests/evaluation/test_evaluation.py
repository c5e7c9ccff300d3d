"""Measures against values worked out by hand and against plain twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.classification import accuracy
from ensemble.evaluation.density_coverage import density_coverage
from ensemble.evaluation.diversity import diversity
from ensemble.evaluation.estimate import Estimate, mean_interval, t_interval
from ensemble.evaluation.features import penultimate_features
from ensemble.evaluation.frechet import frechet_distance
from ensemble.evaluation.inception_score import inception_score
from ensemble.evaluation.intervals import clopper_pearson
from ensemble.evaluation.judge import Judge
from ensemble.evaluation.kernel_distance import kernel_distance
from ensemble.evaluation.neighbours import nearest_neighbours
from ensemble.evaluation.precision_recall import precision_recall
from models._card import ModelCard


def card(num_classes: int = 3, size: int = 4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)) -> ModelCard:
    return ModelCard("net", "test", size, num_classes, mean, std)


def points(seed: int, n: int, width: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)) * scale + shift


class ChannelMeans(nn.Module):
    """Logits are the mean of each channel less 1, so the brightest channel is the class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x.mean((2, 3)) - 1


def plain_images(*colours: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


# accuracy


def test_a_network_that_ends_in_a_softmax_is_read_as_one_that_does_not():
    images, targets = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    sure = nn.Sequential(ChannelMeans(), nn.Linear(3, 3))
    expected = accuracy(sure, card(), images, targets)
    found = accuracy(nn.Sequential(sure, nn.Softmax(1)), card(), images, targets)
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-5) and found.top1 == expected.top1


def test_accuracy_by_hand():
    images = plain_images((1, 0, 0), (0, 1, 0), (0, 1, 0), (0.25, 0, 0.75))
    result = accuracy(ChannelMeans(), card(), images, torch.tensor([0, 1, 0, 0]), batch_size=3)
    assert (result.top1, result.top5, result.n) == (0.5, 1.0, 4)
    assert result.per_class[:2] == (pytest.approx(1 / 3), 1.0)
    assert math.isnan(result.per_class[2])
    one_hot = math.e / (math.e + 2)
    mixed = math.exp(0.75) / (math.exp(0.75) + math.exp(0.25) + 1)
    assert result.confidence == pytest.approx((3 * one_hot + mixed) / 4, rel=1e-6)
    assert result.interval == clopper_pearson(2, 4)


def test_top5_counts_five_of_many():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    nn.init.zeros_(net[1].weight)
    net[1].bias.data = torch.arange(7.0)
    result = accuracy(net, card(7), torch.rand(7, 3, 4, 4), torch.arange(7))
    assert (result.top1, result.top5) == (pytest.approx(1 / 7), pytest.approx(5 / 7))


def test_constant_logits_do_not_count_as_right():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert accuracy(net, card(10), torch.rand(10, 3, 4, 4), torch.arange(10)).top1 <= 0.1


def test_images_are_resized_and_normalised():
    net = ChannelMeans()
    images = torch.rand(2, 3, 8, 12)
    accuracy(net, card(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)), images, torch.tensor([0, 1]))
    small = F.interpolate(images, (4, 4), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
    torch.testing.assert_close(net.seen, (small - mean[:, None, None]) / std[:, None, None])


def test_modes_are_kept_and_eval_is_used():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), ChannelMeans()).train()
    net[1].eval()
    net[0].train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    accuracy(net, card(), torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long))
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net[1].train()
    accuracy(net, card(), torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long))
    assert torch.equal(net[1].running_mean, before["1.running_mean"])
    assert not net[2].seen.requires_grad


def test_a_network_in_float64_gets_float64():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    assert accuracy(net, card(), torch.rand(2, 3, 4, 4), torch.tensor([0, 1])).n == 2


@pytest.mark.parametrize(
    ("images", "targets", "says"),
    [
        (torch.rand(2, 1, 4, 4), torch.zeros(2), r"\(N, 3, H, W\)"),
        (torch.rand(0, 3, 4, 4), torch.zeros(0), r"\(N, 3, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "divide by 255"),
        (torch.full((2, 3, 4, 4), 2.0), torch.zeros(2), r"RGB in \[0, 1\]"),
        (torch.full((2, 3, 4, 4), math.nan), torch.zeros(2), r"RGB in \[0, 1\]"),
        (torch.rand(2, 3, 4, 4), torch.zeros(3), "as many targets"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, 3]), r"targets must be in 0\.\.2"),
    ],
)
def test_wrong_input_is_refused(images, targets, says):
    with pytest.raises(ValueError, match=says):
        accuracy(ChannelMeans(), card(), images, targets)


def test_wrong_network_is_refused():
    images, targets = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="5 classes"):
        accuracy(ChannelMeans(), card(5), images, targets)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    nn.init.constant_(broken[1].weight, math.nan)
    with pytest.raises(ValueError, match="not finite"):
        accuracy(broken, card(), images, targets)
    with pytest.raises(ValueError, match="batch_size"):
        accuracy(ChannelMeans(), card(), images, targets, batch_size=0)


def test_clopper_pearson_interval():
    # Newcombe (1998), table I, method 5: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for successes, n, low, high in ((81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0, 0.1684)):
        assert clopper_pearson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert clopper_pearson(1, 29) == pytest.approx((0.0009, 0.1776), abs=5e-5)
    assert clopper_pearson(20, 20) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    low, high = clopper_pearson(4970, 10000)
    assert low == pytest.approx(0.497 - 1.96 * 0.005, abs=2e-4) and high == pytest.approx(
        0.497 + 1.96 * 0.005, abs=2e-4
    )
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes"):
            clopper_pearson(successes, n)


# features


class LinearNet(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(48, 6)
        self.auxiliary = nn.Linear(6, 3)  # never runs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(input=self.body(x.flatten(1)).relu())


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in net.modules())


def test_features_of_the_last_linear_that_runs():
    net, images = LinearNet(), torch.rand(5, 3, 4, 4)
    features = penultimate_features(net, card(), images, batch_size=2)
    torch.testing.assert_close(features, net.body(images.flatten(1)).relu().detach())
    assert hooks(net) == 0 and net.training and not features.requires_grad


def test_features_of_a_convolutional_classifier():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    net = nn.Sequential(body, nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(penultimate_features(net, card(), images), body(images).mean((2, 3)).detach())


def test_features_of_a_linear_layer_over_positions():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.permute(0, 2, 3, 1)).mean((1, 2))

    images = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(penultimate_features(Tokens(), card(), images), images.mean((2, 3)))


@pytest.mark.parametrize(
    "net",
    [
        ChannelMeans(),
        nn.Sequential(nn.Conv2d(3, 3, 3), ChannelMeans()),
        nn.Sequential(nn.Conv2d(3, 5, 1), ChannelMeans()),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Linear(3, 4)),
    ],
    ids=["no layer", "3x3 convolution", "other number of channels", "other number of outputs"],
)
def test_network_without_a_classifier_is_refused(net):
    with pytest.raises(ValueError, match=r"nn\.Linear or a 1x1 nn\.Conv2d with 3 outputs"):
        penultimate_features(net, card(), torch.rand(2, 3, 4, 4))
    assert hooks(net) == 0


def test_hooks_go_also_after_an_error():
    class Fails(LinearNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 1:
                raise RuntimeError("too many")
            return super().forward(x)

    net = Fails()
    with pytest.raises(RuntimeError, match="too many"):
        penultimate_features(net, card(), torch.rand(2, 3, 4, 4))
    assert hooks(net) == 0 and net.training


# Fréchet distance


def test_frechet_distance_by_hand():
    a = points(0, 50, 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a + np.array([1, 2, 0, -2])) == pytest.approx(9)
    # same axes, standard deviations 1 and 3: Tr(Σa + Σb - 2 √(Σa Σb)) = (3 - 1)² Tr Σa
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * np.cov(a.T).trace())


@pytest.mark.parametrize(("n", "width"), [(60, 5), (8, 20)], ids=["regular", "singular covariance"])
def test_frechet_distance_against_a_matrix_root(n, width):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = points(1, n, width) @ points(2, width, width), points(3, n + 3, width, 2.0, 0.5)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a)
    cross = np.trace(linalg.sqrtm(root @ cov_b @ root)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, torch.from_numpy(a)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_set_in_fewer_images_than_features():
    a = points(4, 5, 300)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


# kernel distance


def test_kernel_distance_by_hand():
    # D = 1: k(x, y) = (xy + 1)³; within a: 1, within b: 8, between: mean of (1, 1, 1, 1)
    assert kernel_distance(np.zeros((2, 1)), np.ones((2, 1))) == pytest.approx(1 + 8 - 2)


def test_kernel_distance_against_loops():
    a, b = points(5, 7, 3), points(6, 5, 3, 1.5, 0.3)

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) for s in (a, b)]
    between = sum(k(x, y) for x in a for y in b)
    expected = within[0] / (7 * 6) + within[1] / (5 * 4) - 2 * between / 35
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_the_same_in_blocks(monkeypatch):
    a, b = points(7, 11, 3), points(8, 9, 3)
    whole = kernel_distance(a, b)
    monkeypatch.setattr("ensemble.evaluation.kernel_distance._ROWS", 4)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(points(2 * i, 20, 4), points(2 * i + 1, 20, 4)) for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0


# Inception Score


def test_inception_score_by_hand():
    assert inception_score(np.eye(4)) == (pytest.approx(4), 0)
    assert inception_score(np.full((6, 3), 1 / 3)) == (pytest.approx(1), 0)
    # split 1: two classes, split 2: one class
    assert inception_score(np.eye(2)[[0, 1, 1, 1]], splits=2) == (pytest.approx(1.5), pytest.approx(0.5))


def test_inception_score_against_loops():
    p = torch.from_numpy(points(9, 12, 5)).softmax(1).numpy()
    scores = []
    for part in (p[:4], p[4:8], p[8:]):
        marginal = [sum(row[j] for row in part) / 4 for j in range(5)]
        divergence = [sum(q * math.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in part]
        scores.append(math.exp(sum(divergence) / 4))
    assert inception_score(torch.from_numpy(p), splits=3) == pytest.approx((np.mean(scores), np.std(scores)))


def test_inception_score_refuses():
    with pytest.raises(ValueError, match="softmax"):
        inception_score(points(0, 4, 3))
    with pytest.raises(ValueError, match="softmax"):
        inception_score(np.full((4, 3), 0.5))
    for splits in (0, 5):
        with pytest.raises(ValueError, match="splits"):
            inception_score(np.eye(4), splits)


# precision, recall, density, coverage

LINE = np.array([[0.0], [1.0], [3.0]])  # first neighbours at 1, 1 and 2


def test_precision_recall_by_hand():
    # real balls: [-1, 1], [0, 2], [1, 5]; generated: [-8.5, 5.5], [2, 9], [5.5, 12.5]
    assert precision_recall(LINE, np.array([[-1.5], [5.5], [9.0]]), k=1) == (0, 1)
    # 5 lies on the sphere and counts; generated balls [2, 8], [5, 11], [-93, 109]
    assert precision_recall(LINE, np.array([[5.0], [8.0], [-90.0]]), k=1) == (pytest.approx(1 / 3), 1)


def test_density_coverage_by_hand():
    # 0.5 lies in balls 1 and 2; 1 in all three; 9 in none
    density, coverage = density_coverage(LINE, np.array([[0.5], [1.0], [9.0]]), k=1)
    assert (density, coverage) == (pytest.approx(5 / 3), 1)
    assert density_coverage(LINE, np.array([[-0.5], [9.0]]), k=1) == pytest.approx((1 / 2, 1 / 3))


@pytest.mark.parametrize("block", [2**24, 20], ids=["one block", "many blocks"])
def test_manifold_measures_against_loops(monkeypatch, block):
    monkeypatch.setattr("ensemble.evaluation._arrays._BLOCK", block)
    real, generated, k = points(10, 14, 3), points(11, 9, 3, 0.8, 0.4), 2

    def radii(s):
        return [sorted(math.dist(x, y) for j, y in enumerate(s) if j != i)[k - 1] for i, x in enumerate(s)]

    def inside(xs, centres):
        return [[math.dist(x, c) <= r for x in xs] for c, r in zip(centres, radii(centres), strict=True)]

    in_real, in_generated = np.array(inside(generated, real)), np.array(inside(real, generated))
    assert 0 < in_real.mean() < 1
    expected = in_real.any(0).mean(), in_generated.any(0).mean()
    assert precision_recall(real, generated, k) == pytest.approx(expected)
    expected = in_real.sum() / (k * 9), in_real.any(1).mean()
    assert density_coverage(real, torch.from_numpy(generated), k) == pytest.approx(expected)


def test_copies_lie_on_the_manifold():
    real = points(12, 30, 8)
    real = np.concatenate([real, real])  # every first neighbour at distance 0
    assert precision_recall(real, real, k=1) == (1, 1)
    assert density_coverage(real, real, k=1)[1] == 1


def test_too_large_k_is_refused():
    for k in (0, 3):
        with pytest.raises(ValueError, match="neighbour"):
            precision_recall(LINE, LINE, k)
        with pytest.raises(ValueError, match="neighbour"):
            density_coverage(LINE, LINE, k)


# diversity


def test_diversity_by_hand():
    x = np.array([[1.0, 0], [0, 2], [-3, 0], [5, 5], [2, 2], [7, 7]])
    # class 0: 1, 2, 1; class 1: 0; class 2 has no pair
    assert diversity(x, np.array([0, 0, 0, 1, 1, 2])) == pytest.approx(4 / 4)
    assert diversity(np.ones((4, 3)), torch.zeros(4)) == pytest.approx(0)


def test_diversity_of_repeated_images_is_not_below_zero():
    rows = np.random.default_rng(0).random((50, 64))
    assert all(0 <= diversity(np.repeat(row[None], 6, 0), np.zeros(6)) < 1e-12 for row in rows)


def test_diversity_against_loops():
    x, labels = points(13, 12, 4), np.arange(12) % 3
    pairs = [(i, j) for i in range(12) for j in range(i) if labels[i] == labels[j]]
    cosines = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in pairs]
    assert diversity(torch.from_numpy(x), torch.from_numpy(labels)) == pytest.approx(1 - np.mean(cosines))


def test_diversity_refuses():
    with pytest.raises(ValueError, match="two images"):
        diversity(np.ones((2, 2)), np.array([0, 1]))
    with pytest.raises(ValueError, match="zero"):
        diversity(np.array([[1.0, 0], [0, 0]]), np.zeros(2))
    with pytest.raises(ValueError, match="labels"):
        diversity(np.ones((2, 2)), np.zeros(3))


# neighbours


def test_neighbours_by_hand():
    x = np.array([[0.0, 0], [3, 4], [10, 0], [7, 7]])
    train, test = np.array([[0.0, 1], [10, 0], [7, 7]]), np.array([[0.0, 0], [3, 2], [7, 7]])
    result = nearest_neighbours(x, torch.from_numpy(train), test)
    assert result.train_index.tolist() == [0, 0, 1, 2] and result.test_index.tolist() == [0, 1, 1, 2]
    assert result.train_distance == pytest.approx([1, math.sqrt(18), 0, 0])
    assert result.test_distance == pytest.approx([0, 2, math.sqrt(53), 0])
    assert result.ratio == pytest.approx([math.inf, math.sqrt(18) / 2, 0, 1])
    assert result.closer_to_train == pytest.approx(1.5 / 4)


def test_neighbours_against_loops(monkeypatch):
    monkeypatch.setattr("ensemble.evaluation._arrays._BLOCK", 20)
    x, train, test = points(14, 9, 3), points(15, 8, 3), points(16, 8, 3)
    result = nearest_neighbours(x, train, test)
    for i, point in enumerate(x):
        near_train, near_test = (min(math.dist(point, y) for y in s) for s in (train, test))
        assert math.dist(point, train[result.train_index[i]]) == near_train
        assert result.ratio[i] == pytest.approx(near_train / near_test)


def test_copies_are_at_distance_zero_far_from_the_origin():
    x = points(17, 30, 8, 1e-3, 1e3)  # |a|² + |b|² - 2ab would cancel
    result = nearest_neighbours(x, x[::-1].copy(), x + 1e-6)
    assert (result.train_distance == 0).all() and (result.ratio == 0).all()
    assert result.test_distance == pytest.approx(np.full(30, 1e-6 * math.sqrt(8)), rel=1e-5)


def test_neighbours_need_sets_of_one_size():
    with pytest.raises(ValueError, match="as many"):
        nearest_neighbours(points(0, 3, 2), points(1, 4, 2), points(2, 5, 2))


# what all feature measures refuse


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall, density_coverage])
def test_unfit_feature_sets_are_refused(measure):
    good = points(0, 8, 3)
    bad = good.copy()
    bad[2, 1] = math.inf
    wide = points(0, 8, 4)
    for other, says in ((good[:, 0], "shape"), (good[:0], "shape"), (bad, "finite"), (wide, "widths")):
        with pytest.raises(ValueError, match=says):
            measure(good, other)
        with pytest.raises(ValueError, match=says):
            measure(other, good)


def test_mean_interval() -> None:
    """By hand: mean 2, sd 1, t = 4.303, 4.303 / sqrt(3) = 2.484."""
    assert mean_interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert mean_interval([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5"
    assert mean_interval([0.5], 2) == "0.50"
    assert mean_interval([1.0] * 6) == "1.000 ± 0.000"
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_an_estimate_is_written_with_its_interval() -> None:
    found = Estimate(0.71, 0.6, 0.8)
    assert f"{found:.2f}" == "0.71 [0.60, 0.80]" and f"{found:+.1%}" == "+71.0% [+60.0%, +80.0%]"
    assert found.holds(0.6) and not found.holds(0.81) and found.interval == (0.6, 0.8) and found.bounded
    alone = t_interval([0.71])
    assert not alone.bounded and f"{alone:.2f}" == "0.71 [–]" and f"{alone:+.1%}" == "+71.0% [–]"
    assert f"{Estimate(math.nan, math.nan, math.nan):.2f}" == "– [–]"


# the judge


class Colour(nn.Module):
    """Features: the mean colour; classes: by its largest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))


RGB = ModelCard("colour", "test", 2, 3, mean=(0.0,) * 3, std=(1.0,) * 3, class_names=("red", "green", "blue"))


def coloured(counts: dict[str, int], seed: int = 0) -> LabelledImages:
    """Noisy red, green and blue images, sorted by the classes' names as `load_images` sorts them."""
    rng = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for label, name in enumerate(sorted(counts)):
        noise = torch.randint(0, 60, (counts[name], 3, 2, 2), generator=rng, dtype=torch.uint8)
        if name in RGB.class_names:
            noise[:, RGB.class_names.index(name)] += 190
        images.append(noise)
        labels += [label] * counts[name]
    return LabelledImages(torch.cat(images), torch.tensor(labels), tuple(sorted(counts)))


def test_judge_compares_with_real_images_of_all_classes() -> None:
    """The data is sorted by class, and neighbours are sought among a part of it."""
    judge = Judge(Colour(), RGB, coloured({"red": 1500, "green": 1500, "blue": 1500}))
    seen = judge.scale(coloured({"red": 200, "green": 200, "blue": 200}, seed=1), 300)
    assert seen.accuracy.top1 == 1  # folders are in another order than the classes
    assert seen.precision > 0.9 and seen.recall > 0.9


def test_judge_compares_with_real_images_of_the_same_classes() -> None:
    judge = Judge(Colour(), RGB, coloured({"red": 300, "green": 300, "blue": 300}))
    train = coloured({"red": 200, "green": 200, "blue": 200}, seed=1)
    reds = judge.scale(train, torch.zeros(100, dtype=torch.long))
    assert reds.n == 100 and reds.accuracy.top1 == 1
    assert reds.frechet < 1e-3 < judge(train.images[:100].float() / 255, torch.arange(100) % 3).frechet


def test_judge_refuses_classes_it_does_not_have() -> None:
    for names in (("red", "cyan"), ("red", "cyan", "green")):
        with pytest.raises(ValueError, match="colour has no class 'cyan'; name the folders as its 3 classes"):
            Judge(Colour(), RGB, coloured(dict.fromkeys(names, 5)))
    with pytest.warns(UserWarning, match="no folder is named as a class of colour, so they are taken in its order"):
        Judge(Colour(), RGB, coloured({"cyan": 5, "magenta": 5, "yellow": 5}))
    with pytest.raises(ValueError, match="no real training image is of a class"):
        Judge(Colour(), RGB, coloured({"red": 9})).scale(coloured({"red": 9}), torch.full((5,), 2))
    with pytest.raises(ValueError, match=r"no real image is of 1 of the 1 classes that are judged \(blue\)"):
        Judge(Colour(), RGB, coloured({"red": 9}))(torch.rand(4, 3, 2, 2), torch.full((4,), 2))
