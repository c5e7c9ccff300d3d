"""Every term of the loss: a value worked out by hand, a twin written from its formula, and that it falls."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import ClassScore, CrossEntropy, Saturating, SoftTargets
from ensemble.objectives.image_priors import L2Prior, TotalVariation
from ensemble.objectives.terms import Formulation, FunctionTerm, Slice, TeacherTerm, Totals
from ensemble.teachers.statistics import BNLayer, BNStatistics
from ensemble.teachers.teacher import Observation, Profile, Teacher
from models import ModelCard

CARD = ModelCard("tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def falls(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, below: float, lr: float = 0.02) -> None:
    """A hundred steps of Adam from `start` bring `loss` below `below` x its first value."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    first = loss(x).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    assert loss(x).item() < below * first


# --- BN matching ----------------------------------------------------------------------------------


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()
        second = nn.Conv2d(5, 6, 3, stride=2), nn.BatchNorm2d(6), nn.SiLU()
        net = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return net.double().eval().requires_grad_(False)


class InputStatistics:
    """The gaps |mean - mu| and |var - var_run| of one BN layer's input, kept by a hook."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        norm.register_forward_pre_hook(self)

    def __call__(self, norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        x = inputs[0]
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
        self.mean_gap = torch.linalg.vector_norm(mean - norm.running_mean)
        self.var_gap = torch.linalg.vector_norm(var - norm.running_var)
        self.relative_mean = self.mean_gap / torch.linalg.vector_norm(norm.running_var**0.5)
        self.relative_var = self.var_gap / torch.linalg.vector_norm(norm.running_var)


def _levels(images: int) -> list[tuple[float, float]]:
    """Of real batches, of the tiny network's two layers: sampling errors (`BNStatistics.levels`)."""
    independent = [images * p / (4 + p / 12) for p in (layer.positions for layer in teacher_layers())]
    return [(n**-0.5, (2 / n) ** 0.5) for n in independent]


def teacher_layers() -> tuple[BNLayer, ...]:
    statistics = Teacher("t", network(), CARD).statistics
    assert statistics is not None
    return statistics.layers


def twin(view: torch.Tensor, convention: str, weights: tuple[float, float] = (1.0, 1.0)) -> torch.Tensor:
    """R_feature of the tiny network by hooks, from the equations."""
    net = copy.deepcopy(network())
    layers = [InputStatistics(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    mean, std = tensor(*CARD.mean)[:, None, None], tensor(*CARD.std)[:, None, None]
    net((view - mean) / std)
    if convention == "calibrated":
        rows = [
            a * (max(r.relative_mean / m - 0.5, 0 * r.mean_gap) + max(r.relative_var / v - 0.5, 0 * r.var_gap)) / 2
            for a, r, (m, v) in zip(weights, layers, _levels(len(view)), strict=True)
        ]
        return torch.stack(rows).mean()
    if convention == "paper":
        return sum((a * (r.mean_gap + r.var_gap) for a, r in zip(weights, layers, strict=True)), start=tensor(0)[0])
    rows = [a * (r.relative_mean + r.relative_var) for a, r in zip(weights, layers, strict=True)]
    return torch.stack(rows).mean()


def whole_batch(
    term: TeacherTerm, seen: Observation, profile: Profile, images: int, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """The unweighted loss of one teacher that sees the whole batch at once."""
    targets = torch.zeros(images, dtype=torch.int64) if targets is None else targets
    batch = Slice(0, images, images, targets, profile, profile.card.input_size)
    return term.loss(Totals({0: term.sums(seen, batch)}, [batch]), 0)


def of_moments(objective: BNMatching, moments: torch.Tensor, statistics: BNStatistics, images: int) -> torch.Tensor:
    return whole_batch(
        objective,
        Observation(torch.zeros(images, 4), moments, torch.zeros(images, 0)),
        Profile("t", CARD, statistics),
        images,
    )


def of_logits(term: TeacherTerm, logits: torch.Tensor, targets: torch.Tensor, images: int) -> torch.Tensor:
    """What a slice of logits adds."""
    batch = Slice(0, len(logits), images, targets, Profile("t", CARD, None), 8)
    return term.sums(Observation(logits, torch.zeros(2, 0), torch.zeros(len(logits), 0)), batch)


def ours(view: torch.Tensor, objective: BNMatching) -> torch.Tensor:
    teacher = Teacher("t", network(), CARD, dtype=torch.float64)
    return whole_batch(objective, teacher.observe(view), teacher.profile(), len(view))


def two_channels() -> tuple[BNStatistics, torch.Tensor]:
    """One layer, var (1, 4); a batch of 3 images x 2 positions, 3 and 4 off the mean, of variance (1, 16)."""
    statistics = BNStatistics((BNLayer("a", 0, 2, 2),), tensor(7, -5), tensor(1, 4))
    return statistics, torch.stack([6 * tensor(3, 4), 6 * (tensor(1, 16) + tensor(3, 4) ** 2)])


def test_bn_matching_by_hand() -> None:
    statistics, moments = two_channels()
    # |(3, 4)| = 5, |(1, 16) - (1, 4)| = 12; |sigma| = sqrt(1 + 4), |var| = sqrt(1 + 16)
    assert float(of_moments(BNMatching(convention="paper"), moments, statistics, 3)) == pytest.approx(17)
    expected = 5 / math.sqrt(5) + 12 / math.sqrt(17)
    assert float(of_moments(BNMatching(convention="relative"), moments, statistics, 3)) == pytest.approx(expected)
    assert float(of_moments(BNMatching(convention="relative", first=10), moments, statistics, 3)) == pytest.approx(
        10 * expected
    )
    weighed = BNMatching(convention="relative", weight=10)  # by its caller
    assert float(of_moments(weighed, moments, statistics, 3)) == pytest.approx(expected)


@pytest.mark.parametrize("convention", ["paper", "relative", "calibrated"])
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (1.0, 1.0)),
        ({"first": 10.0}, (10.0, 1.0)),
        ({"first": 2.0, "layers": {"*": 0.5, "4": 0.0}}, (1.0, 0.0)),
    ],
)
def test_bn_matching_is_its_twin(convention: str, options: dict, weights: tuple[float, float]) -> None:
    objective = BNMatching(convention=convention, slack=0.5, **options)  # type: ignore[arg-type]
    view = draw(5, 3, 8, 8).requires_grad_()
    value, expected = ours(view, objective), twin(view, convention, weights)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    (gradient,), (wanted,) = torch.autograd.grad(value, view), torch.autograd.grad(expected, view)
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-12


def test_nothing_pulls_below_the_level_of_real_batches() -> None:
    view = draw(5, 3, 8, 8).requires_grad_()
    loss = ours(view, BNMatching(convention="calibrated", slack=1e6))
    (gradient,) = torch.autograd.grad(loss, view)
    assert loss.item() == 0 and not gradient.any()


@pytest.mark.parametrize("convention", ["paper", "relative", "calibrated"])
def test_bn_matching_gradcheck(convention: str) -> None:
    statistics, moments = two_channels()
    objective = BNMatching(convention=convention)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda m: of_moments(objective, m, statistics, 3), moments.requires_grad_())
    view = draw(2, 3, 8, 8)
    leaf = view.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours(leaf, objective), leaf)
    direction = draw(2, 3, 8, 8, seed=1) - 0.5
    up, down = ours(view + 1e-6 * direction, objective), ours(view - 1e-6 * direction, objective)
    assert float((up - down) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_bn_matching_of_a_perfect_match_is_zero_with_a_zero_gradient() -> None:
    statistics, _ = two_channels()
    moments = torch.stack([tensor(0, 0), 6 * tensor(1, 4)]).requires_grad_()
    loss = of_moments(BNMatching(convention="relative"), moments, statistics, 3)
    loss.backward()
    assert loss.item() < 1e-150
    assert moments.grad is not None and not moments.grad.any()


@pytest.mark.parametrize("convention", ["paper", "relative", "calibrated"])
def test_bn_matching_falls(convention: str) -> None:
    objective = BNMatching(convention=convention)  # type: ignore[arg-type]
    falls(lambda view: ours(view, objective), draw(6, 3, 8, 8), below=0.5)


def profiles() -> list[Profile]:
    statistics, _ = two_channels()
    other = BNStatistics((BNLayer("b", 0, 2, 2),), tensor(0, 0), tensor(1, 1))
    return [Profile("first", CARD, statistics), Profile("second", CARD, other)]


def test_bn_matching_names_a_pattern_that_matches_nothing() -> None:
    BNMatching(layers={"b": 2.0}).check(profiles())  # one teacher has it
    with pytest.raises(
        ValueError, match=r"no layer with statistics matches 'layer\*'; layers of first: a; of second: b"
    ):
        BNMatching(layers={"layer*": 2.0}).check(profiles())


def test_a_teachers_own_layer_factors_must_be_its_own() -> None:
    first, second = profiles()
    BNMatching().check([first, Profile("second", CARD, second.statistics, {"b": 0.5})])
    with pytest.raises(ValueError, match=r"no layer with statistics matches 'a'; layers of second: b"):
        BNMatching().check([first, Profile("second", CARD, second.statistics, {"a": 0.5})])


def test_a_teachers_own_layer_factors_count() -> None:
    statistics, moments = two_channels()
    seen = Observation(torch.zeros(3, 4), moments, torch.zeros(3, 0))
    plain, halved = (Profile("t", CARD, statistics, layers) for layers in ({}, {"a": 0.5}))
    whole, half = (whole_batch(BNMatching(convention="relative"), seen, profile, 3) for profile in (plain, halved))
    assert float(half) == pytest.approx(float(whole) / 2)


def test_bn_matching_refuses_a_teacher_without_bn_layers() -> None:
    with pytest.raises(ValueError, match="bare has no BatchNorm layers with statistics, but bn_matching needs them"):
        BNMatching().check([Profile("bare", CARD, None)])


# --- classification -------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    logits = tensor(0, 0, math.log(3), 0).view(2, 2)
    # log 2 for the first image; the second gives class 0 three quarters
    value = of_logits(CrossEntropy(temperature=1.0), logits, torch.tensor([1, 0]), 2)
    assert float(value) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    softened = of_logits(CrossEntropy(temperature=0.5), logits[1:], torch.tensor([0]), 1)
    assert float(softened) == pytest.approx(math.log(10 / 9))


def test_the_limit_of_the_temperature_makes_weak_logits_pull_as_strong_ones() -> None:
    """Three classes, logits 0, 3, 6: their deviation is sqrt(6), so with at_most 0.5 they are divided by that half."""
    term, targets = CrossEntropy(temperature=4.0, at_most=0.5), torch.tensor([2, 0])
    logits = torch.stack([tensor(0, 3, 6), tensor(1, 0, -1)])
    scaled = (logits[0] / (0.5 * math.sqrt(6))).numpy()[None], (logits[1] / (0.5 * math.sqrt(2 / 3))).numpy()[None]
    expected = sum(numpy_cross_entropy(z, y, 1.0) for z, y in zip(scaled, (np.array([2]), np.array([0])), strict=True))
    assert float(of_logits(term, logits, targets, 2)) == pytest.approx(expected / 2, rel=1e-12)

    def pull(z: torch.Tensor) -> torch.Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(of_logits(term, z, targets, 2), z)[0]

    torch.testing.assert_close(0.01 * pull(0.01 * logits), pull(logits), rtol=1e-9, atol=0)
    # The deviation counts as a constant: the pull is (p - y) / T.
    p = torch.softmax(logits[:1] / (0.5 * math.sqrt(6)), 1)
    by_hand = (p - torch.tensor([[0.0, 0.0, 1.0]])) / (0.5 * math.sqrt(6)) / 2
    torch.testing.assert_close(pull(logits)[:1], by_hand, rtol=1e-9, atol=0)
    # Strong logits have the temperature, and those that are all alike no infinite pull.
    plain = of_logits(CrossEntropy(temperature=4.0), 10 * logits, targets, 2)
    assert float(of_logits(term, 10 * logits, targets, 2)) == pytest.approx(float(plain), rel=1e-12)
    assert torch.isfinite(of_logits(term, torch.zeros(2, 3, dtype=torch.float64), targets, 2))


def test_what_is_certain_enough_is_no_longer_pulled() -> None:
    logits = tensor(0, 0, math.log(3), 0, math.log(19), 0).view(3, 2).requires_grad_()  # p = 1/2, 3/4, 19/20
    value = of_logits(Saturating(until=0.8), logits, torch.tensor([1, 0, 0]), 3)
    value.backward()
    assert value.item() == pytest.approx((math.log(0.8 / 0.5) + math.log(0.8 / 0.75)) / 3)
    assert logits.grad is not None
    assert logits.grad[1].tolist() == pytest.approx([-0.25 / 3, 0.25 / 3]) and not logits.grad[2].any()


def batch_of(targets: torch.Tensor, seed: int = 0) -> Slice:
    return Slice(0, len(targets), len(targets), targets, Profile("t", CARD, None), 8, seed)


def test_soft_targets_are_drawn_for_each_image() -> None:
    targets = torch.arange(4).repeat(500)
    term = SoftTargets(least=0.5, most=0.9, concentration=0.3)
    q = term.distributions(batch_of(targets), 4)
    own = q.gather(1, targets[:, None])[:, 0]
    assert torch.allclose(q.sum(1), torch.ones(2000, dtype=torch.float64))
    assert 0.5 <= own.min() < 0.51 and 0.89 < own.max() <= 0.9 and abs(float(own.mean()) - 0.7) < 0.01
    others = q.scatter(1, targets[:, None], 0.0) / (1 - own)[:, None]
    # a symmetric Dirichlet of 3 parts a = 0.3: mean 1/3, second moment (a + 1) / (3 (3 a + 1))
    assert float(others.sum(0).mean()) == pytest.approx(500, rel=0.05)
    assert float(others.square().sum(1).mean()) == pytest.approx(1.3 / 1.9, rel=0.05)
    again, other = term.distributions(batch_of(targets), 4), term.distributions(batch_of(targets, seed=1), 4)
    assert again.equal(q) and not other.equal(q)


def test_mapped_teachers_are_asked_for_the_same_soft_targets() -> None:
    """Classes a, b, c, d; another has e, d, c, b, a; a third has d and a alone."""
    first = SoftTargets().distributions(batch_of(torch.tensor([0, 3, 0])), 4)

    def asked(columns: tuple[int, ...], targets: list[int], classes: int) -> torch.Tensor:
        about = replace(batch_of(torch.tensor(targets)), teacher=Profile("u", CARD, None, columns=columns))
        return SoftTargets().distributions(about, classes)

    other = asked((4, 3, 2, 1), [4, 1, 4], 5)
    assert other[:, [4, 3, 2, 1]].equal(first) and not other[:, 0].any()
    few = asked((1, -1, -1, 0), [1, 0, 1], 2)
    torch.testing.assert_close(few.sum(1), torch.ones(3, dtype=torch.float64))
    assert few[0, 1] == first[0, 0] and few[1, 0] == first[1, 3]
    alone = asked((-1, -1, -1, 1), [1, 1, 1], 2)  # it knows nothing else of these classes
    assert alone.equal(torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64))
    joined = asked((0, 1, 1, 2), [0, 2, 0], 3)  # two classes are one of its own
    torch.testing.assert_close(joined[:, 1], first[:, 1] + first[:, 2])
    torch.testing.assert_close(joined.sum(1), torch.ones(3, dtype=torch.float64))


def test_soft_targets_are_the_divergence_and_slices_add() -> None:
    logits, targets = 3 * draw(7, 4), torch.tensor([0, 1, 2, 3, 3, 0, 1])
    term, profile = SoftTargets(), Profile("t", CARD, None)
    q = term.distributions(batch_of(targets), 4)
    p = logits.softmax(1)
    expected = float((q * (q.clamp_min(1e-300).log() - p.log())).sum() / 7)
    parts = [
        term.sums(
            Observation(logits[a:b], torch.zeros(2, 0), torch.zeros(b - a, 0)), Slice(a, b, 7, targets[a:b], profile, 8)
        )
        for a, b in ((0, 1), (1, 5), (5, 7))
    ]
    assert float(sum(parts)) == pytest.approx(expected, rel=1e-12)


def test_drawn_statistics_are_those_of_random_batches() -> None:
    layer = BNLayer("a", 0, 4000, 4)
    statistics = BNStatistics((layer,), torch.zeros(4000).double(), torch.full((4000,), 2.0).double())
    statistics.calibrate({"a": (0.5, 0.6, 0.5, 0.8)})
    batch = Slice(0, 9, 9, torch.zeros(9, dtype=torch.long), Profile("t", CARD, statistics), 8, seed=3)
    offset, var = BNMatching(drawn=True)._wanted(batch)
    assert isinstance(offset, torch.Tensor)
    assert float(offset.std()) == pytest.approx(0.2 * 2**0.5, rel=0.05) and abs(float(offset.mean())) < 0.02
    assert float((var / 2).std()) == pytest.approx(0.8 / 3, rel=0.05) and float(var.mean()) == pytest.approx(
        2, rel=0.02
    )
    assert BNMatching(drawn=True)._wanted(replace(batch, seed=4))[1].ne(var).any()


def test_each_batch_may_stress_other_layers() -> None:
    layers = tuple(BNLayer(str(k), k, 1, 4) for k in range(2000))
    statistics = BNStatistics(layers, torch.zeros(2000).double(), torch.ones(2000).double())
    batch = Slice(0, 9, 9, torch.zeros(9, dtype=torch.long), Profile("t", CARD, statistics), 8, seed=3)
    term = BNMatching(convention="relative", emphasis=0.5)
    factors = term._stress(batch)
    assert float(factors.mean()) == pytest.approx(1) and float(factors.log().std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(term._stress(batch), factors)
    for other in (replace(batch, seed=4), replace(batch, teacher=Profile("u", CARD, statistics))):
        assert term._stress(other).ne(factors).any()


def test_the_stressed_layers_count_so_much_more() -> None:
    both, moments = two_channels()
    statistics = BNStatistics((BNLayer("a", 0, 1, 2), BNLayer("b", 1, 1, 2)), both.mean, both.var)
    seen, profile = Observation(torch.zeros(3, 4), moments, torch.zeros(3, 0)), Profile("t", CARD, statistics)
    plain = [
        float(whole_batch(BNMatching(convention="relative", layers={left_out: 0}), seen, profile, 3))
        for left_out in ("b", "a")
    ]
    batch = Slice(0, 3, 3, torch.zeros(3, dtype=torch.long), profile, CARD.input_size)
    factors = BNMatching(convention="relative", emphasis=1.0)._stress(batch).tolist()
    stressed = float(whole_batch(BNMatching(convention="relative", emphasis=1.0), seen, profile, 3))
    assert stressed == pytest.approx(sum(f * part for f, part in zip(factors, plain, strict=True)))
    assert factors[0] != pytest.approx(factors[1], rel=0.1)


def test_class_score_by_hand() -> None:
    assert float(of_logits(ClassScore(), tensor(1, 2, 5, 7).view(2, 2), torch.tensor([1, 0]), 2)) == -3.5


def numpy_cross_entropy(z: np.ndarray, y: np.ndarray, temperature: float) -> float:
    z = z / temperature
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_terms_are_their_twins_and_slices_add(temperature: float) -> None:
    logits, targets = 6 * draw(7, 4) - 3, torch.tensor([0, 1, 2, 3, 3, 0, 1])
    picked = logits.numpy()[np.arange(7), targets.numpy()]
    for term, expected in (
        (
            CrossEntropy(temperature=temperature),
            numpy_cross_entropy(logits.numpy(), targets.numpy(), temperature),
        ),
        (Saturating(until=1.0), numpy_cross_entropy(logits.numpy(), targets.numpy(), 1.0)),
        (ClassScore(), -float(picked.mean())),
    ):
        assert float(of_logits(term, logits, targets, 7)) == pytest.approx(expected, rel=1e-12)
        parts = [of_logits(term, logits[a:b], targets[a:b], 7) for a, b in ((0, 1), (1, 5), (5, 7))]
        assert float(sum(parts)) == pytest.approx(expected, rel=1e-12)
        assert torch.autograd.gradcheck(lambda z, t=term: of_logits(t, z, targets, 7), logits.clone().requires_grad_())


def test_logits_terms_fall() -> None:
    targets = torch.tensor([0, 1, 2])
    falls(lambda z: of_logits(CrossEntropy(temperature=2.0), z, targets, 3), draw(3, 4), below=0.7)
    falls(lambda z: of_logits(ClassScore(), z, targets, 3) + 10, draw(3, 4), below=0.9)


# --- priors ---------------------------------------------------------------------------------------


def test_total_variation_by_hand() -> None:
    view = tensor(0, 1, 2, 4).view(1, 1, 2, 2)
    # right: (1, 2); down: (2, 3); one diagonal 2 - 1, the other 4 - 0
    assert float(TotalVariation()(view)) == pytest.approx(math.sqrt(5) + math.sqrt(13) + 1 + 4)
    assert float(TotalVariation(order=1)(view)) == pytest.approx(1.5 + 2.5 + 1 + 4)
    batch = torch.cat([view, 0 * view, 3 * view])
    assert float(TotalVariation()(batch)) == pytest.approx(math.sqrt(10) * (math.sqrt(5) + math.sqrt(13) + 5))
    per_image = TotalVariation(over="image")(batch)
    assert float(per_image) == pytest.approx(4 / 3 * (math.sqrt(5) + math.sqrt(13) + 5))


def test_l2_by_hand() -> None:
    view = tensor(3, 0, 0, 4, 0, 0, 12, 0).view(2, 1, 2, 2)
    assert float(L2Prior()(view)) == pytest.approx(13)
    assert float(L2Prior(over="image")(view)) == pytest.approx((5 + 12) / 2)


def numpy_total_variation(x: np.ndarray, order: int) -> float:
    """Each pixel against its neighbour at offset (dy, dx), pixel by pixel."""
    total = 0.0
    height, width = x.shape[2:]
    for dy, dx in ((0, 1), (1, 0), (1, -1), (1, 1)):
        differences = [
            x[:, :, i + dy, j + dx] - x[:, :, i, j]
            for i in range(height - dy)
            for j in range(width)
            if 0 <= j + dx < width
        ]
        d = np.stack(differences)
        total += float(np.sqrt((d**2).sum())) if order == 2 else float(np.abs(d).mean())
    return total


@pytest.mark.parametrize("order", [1, 2])
def test_total_variation_is_its_twin(order: int) -> None:
    view = draw(2, 3, 5, 6)
    prior = TotalVariation(order=order)  # type: ignore[arg-type]
    assert prior.name == f"tv_l{order}"
    assert float(prior(view)) == pytest.approx(numpy_total_variation(view.numpy(), order), rel=1e-12)
    images = [numpy_total_variation(view[i : i + 1].numpy(), order) for i in range(2)]
    over_image = TotalVariation(order=order, over="image")(view)  # type: ignore[arg-type]
    assert float(over_image) == pytest.approx(np.mean(images), rel=1e-12)


def test_a_side_of_one_pixel_has_no_neighbours() -> None:
    view = draw(2, 3, 1, 6)
    expected = (view[..., 1:] - view[..., :-1]).abs().mean()
    assert float(TotalVariation(order=1)(view)) == pytest.approx(float(expected))
    assert float(TotalVariation(order=1)(draw(2, 3, 1, 1))) == 0


def test_l2_is_its_twin() -> None:
    view = draw(2, 3, 4, 4)
    assert float(L2Prior()(view)) == pytest.approx(np.linalg.norm(view.numpy()), rel=1e-12)
    norms = np.linalg.norm(view.numpy().reshape(2, -1), axis=1)
    assert float(L2Prior(over="image")(view)) == pytest.approx(norms.mean(), rel=1e-12)


PRIORS = [
    TotalVariation(),
    TotalVariation(order=1),
    TotalVariation(over="image"),
    L2Prior(),
    L2Prior(over="image"),
]


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_priors_gradcheck_and_fall(prior: TotalVariation | L2Prior) -> None:
    view = draw(2, 3, 4, 4)
    assert torch.autograd.gradcheck(prior, view.clone().requires_grad_())
    falls(prior, view, below=0.5)


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_priors_of_a_flat_start_have_a_gradient(prior: TotalVariation | L2Prior) -> None:
    view = torch.zeros(2, 3, 4, 4, requires_grad=True)
    prior(view).backward()
    assert view.grad is not None and torch.isfinite(view.grad).all()


# --- the whole formula ----------------------------------------------------------------------------


def test_formulation_adds_weighted_priors_in_its_space() -> None:
    view = draw(2, 3, 4, 4)
    priors = (TotalVariation(weight=2.0), L2Prior(weight=0.5))
    plain = Formulation((CrossEntropy(), *priors))
    expected = 2.0 * numpy_total_variation(view.numpy(), 2) + 0.5 * np.linalg.norm(view.numpy())
    assert float(plain.prior_loss(view)) == pytest.approx(expected, rel=1e-12)
    scaled = Formulation((CrossEntropy(), *priors), prior_mean=CARD.mean, prior_std=CARD.std)
    mean, std = np.array(CARD.mean)[:, None, None], np.array(CARD.std)[:, None, None]
    z = (view.numpy() - mean) / std
    expected = 2.0 * numpy_total_variation(z, 2) + 0.5 * np.linalg.norm(z)
    assert float(scaled.prior_loss(view)) == pytest.approx(expected, rel=1e-12)
    assert float(Formulation((CrossEntropy(),)).prior_loss(view)) == 0


def test_formulation_describes_every_term() -> None:
    text = Formulation(
        (CrossEntropy(weight=0.25), ClassScore(weight=3), BNMatching(7, "relative", first=10), L2Prior(weight=1e-5))
    ).describe([("a", 0.25), ("b", 0.75)])
    for part in ("0.25 cross_entropy", "3 class_score", "7 bn_matching[relative, first x 10]", "1e-05 l2"):
        assert part in text
    assert "w(a) = 0.25" in text and "w(b) = 0.75" in text


def test_formulation_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match="nothing ties the images to a teacher"):
        Formulation((L2Prior(),))


def test_terms_of_one_name_are_numbered() -> None:
    terms = (BNMatching(), CrossEntropy(), BNMatching(convention="paper"))
    assert Formulation(terms).names == ("bn_matching#1", "cross_entropy", "bn_matching#2")


def test_a_function_is_a_prior() -> None:
    view = draw(2, 3, 4, 4)
    prior = FunctionTerm(lambda view: view.square().mean(), weight=3.0)
    formulation = Formulation((CrossEntropy(), prior))
    assert float(formulation.prior_loss(view)) == pytest.approx(3 * float((view.numpy() ** 2).mean()))
    assert "3 lambda" in formulation.describe([])
