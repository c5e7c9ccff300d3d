"""The loop: its gradient against plain autograd, what it keeps, and runs that stop, resume and fail."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.guard import NotFiniteError
from ensemble.engine.inversion import Inversion, LiveStage, Step
from ensemble.engine.optimizers import Adam
from ensemble.engine.placement import Cell
from ensemble.engine.reduction import FixedPointSum
from ensemble.engine.schedules import EarlyStopping, Enough
from ensemble.image.fourier import FourierImage
from ensemble.image.pixels import PixelImage
from ensemble.image.transforms import Compose, Flip, Jitter, Resize
from ensemble.machine.rng import generator
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import ClassScore, CrossEntropy
from ensemble.objectives.image_priors import L2Prior, TotalVariation
from ensemble.objectives.terms import Formulation
from ensemble.teachers.teacher import Teacher
from models import ModelCard

IMAGES = 5
TARGETS = torch.tensor([0, 1, 2, 3, 1])
CARD = ModelCard("tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))
NO_CHANGE = Compose(())


class Net(nn.Module):
    """Two BN layers; `plain` has none."""

    def __init__(self, width: int, plain: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.norm1 = nn.Identity() if plain else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 6, 3, stride=2, padding=1)
        self.norm2 = nn.Identity() if plain else nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return self.head(F.silu(self.norm2(self.conv2(x))).mean((2, 3)))


class Cliff(nn.Module):
    """A network whose logits are not a number once the batch's mean input exceeds `height`."""

    def __init__(self, net: nn.Module, height: float) -> None:
        super().__init__()
        self.net, self.height = net, height

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + (self.height - x.mean()).sqrt()


def net(seed: int, plain: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Net(4 + seed, plain)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return made.double().eval().requires_grad_(False)


def member(index: int, network: nn.Module, weight: float = 1.0, card: ModelCard = CARD) -> EnsembleMember:
    teacher = Teacher(f"t{index}", network, card, dtype=torch.float64)
    return EnsembleMember(teacher.profile(), weight, TARGETS, teacher)


def whole(count: int) -> list[Cell]:
    return [Cell(t, 0, IMAGES) for t in range(count)]


def uneven(count: int) -> list[Cell]:
    """Cells of 1, 3 and 1 images for one teacher, 2 and 3 for the next, and so on."""
    bounds = itertools.cycle([(0, 1, 4, 5), (0, 2, 5), (0, 5)])
    return [Cell(t, a, b) for t, cut in zip(range(count), bounds, strict=False) for a, b in itertools.pairwise(cut)]


FORMULATION = Formulation(
    (
        CrossEntropy(weight=0.7, temperature=2.0),
        ClassScore(weight=0.1),
        BNMatching(weight=1.3, convention="relative", first=4.0),
        BNMatching(weight=0.05, convention="paper"),
        TotalVariation(weight=0.01),
        L2Prior(weight=0.02),
    ),
    prior_mean=CARD.mean,
    prior_std=CARD.std,
)


def make(
    members: Sequence[EnsembleMember] | None = None,
    *,
    iterations: int = 6,
    transform: Compose = NO_CHANGE,
    lr: float = 0.05,
    schedule: str = "cosine",
    stages: Sequence[LiveStage] | None = None,
    formulation: Formulation = FORMULATION,
    pixels: bool = False,
    cells: Sequence[Cell] | None = None,
    recompute: bool = False,
    reduction: FixedPointSum | None = None,
    **options: object,
) -> Inversion:
    """An inversion in float64 from a random start; two teachers where `members` are not given."""
    members = [member(0, net(0)), member(1, net(1), 2.0)] if members is None else members
    image: FourierImage | PixelImage
    if pixels:
        image = PixelImage(IMAGES, 8, clip=True, dtype=torch.float64)
    else:
        image = FourierImage(IMAGES, 8, decay=1.0, decorrelate=False, dtype=torch.float64)
        image.randomize(0.5, generator(1))
    stage = LiveStage(iterations, transform, Adam(lr=lr, schedule=schedule))  # type: ignore[arg-type]
    cells = whole(len(members)) if cells is None else cells
    loss = EnsembleLoss(members, formulation, cells, recompute=recompute, reduction=reduction)
    return Inversion(image, loss, stages or [stage], seed=3, **options)  # type: ignore[arg-type]


def finish(inversion: Inversion) -> list[Step]:
    """All steps, taken."""
    return list(inversion)


def draw_view() -> torch.Tensor:
    return torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --- the loss and its gradient ------------------------------------------------------------------------


def plain_loss(view: torch.Tensor, networks: Sequence[nn.Module], weights: Sequence[float]) -> torch.Tensor:
    """FORMULATION as one graph over the whole batch, with a hook on every BN layer."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CARD.mean, CARD.std))
    x = (view - mean) / std
    total = torch.zeros((), dtype=torch.float64)
    for network, weight in zip(networks, weights, strict=True):
        gaps: list[tuple[torch.Tensor, ...]] = []

        def look(norm: nn.Module, inputs: tuple[torch.Tensor, ...], gaps: list = gaps) -> None:
            assert isinstance(norm, nn.BatchNorm2d)
            mu, var = norm.running_mean, norm.running_var
            assert mu is not None and var is not None
            mean_gap = (inputs[0].mean((0, 2, 3)) - mu).norm()
            var_gap = (inputs[0].var((0, 2, 3), correction=0) - var).norm()
            gaps.append((mean_gap, var_gap, mean_gap / var.sqrt().norm(), var_gap / var.norm()))

        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(look)
        logits = network(x)
        score = logits[torch.arange(IMAGES), TARGETS].mean()
        loss = 0.7 * F.cross_entropy(logits / 2, TARGETS) - 0.1 * score
        for i, (mean_gap, var_gap, relative_mean, relative_var) in enumerate(gaps):
            loss = loss + 1.3 * (4 if i == 0 else 1) * (relative_mean + relative_var) / len(gaps)
            loss = loss + 0.05 * (mean_gap + var_gap)
        total = total + weight / sum(weights) * loss
    down, right = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    diagonals = x[:, :, 1:, 1:] - x[:, :, :-1, :-1], x[:, :, 1:, :-1] - x[:, :, :-1, 1:]
    return total + 0.01 * sum(d.norm() for d in (down, right, *diagonals)) + 0.02 * x.norm()


@pytest.mark.parametrize("cells", [whole, uneven])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0), (0.5, 2.0, 1.0)])
def test_gradient_is_plain_autograds(weights: tuple[float, ...], recompute: bool, cells: object) -> None:
    networks = [net(seed) for seed in range(len(weights))]
    members = [member(t, n, w) for t, (n, w) in enumerate(zip(networks, weights, strict=True))]
    inversion = make(members, cells=cells(len(weights)), recompute=recompute)  # type: ignore[operator]
    view = draw_view()
    record, gradient, totals = inversion.loss.gradient(view, inversion.weights_at(0))
    leaf = view.clone().requires_grad_()
    expected = plain_loss(leaf, networks, weights)
    (wanted,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(record.total, expected.detach(), rtol=1e-12, atol=0)
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-12
    torch.testing.assert_close(inversion.loss.measure(view).total, record.total, rtol=1e-12, atol=0)
    assert not any(totals.bad(t) for t in range(len(weights)))


def test_gradient_by_finite_differences() -> None:
    inversion, view = make(cells=uneven(2)), draw_view()
    _, gradient, _ = inversion.loss.gradient(view, inversion.weights_at(0))
    direction = torch.randn(view.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ahead, behind = (inversion.loss.measure(view + h * direction).total for h in (1e-6, -1e-6))
    assert float((ahead - behind) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_without_bn_layers(recompute: bool) -> None:
    networks = [net(0, plain=True), net(1)]
    members = [member(t, n) for t, n in enumerate(networks)]
    inversion, view = (
        make(members, recompute=recompute, formulation=Formulation((CrossEntropy(weight=1.0, temperature=1.0),))),
        draw_view(),
    )
    _, gradient, _ = inversion.loss.gradient(view, {0: 1.0})
    leaf = view.clone().requires_grad_()
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CARD.mean, CARD.std))
    (wanted,) = torch.autograd.grad(F.cross_entropy(networks[0]((leaf - mean) / std), TARGETS), leaf)
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-12


def test_record_names_each_term() -> None:
    inversion, view = make(), draw_view()
    values = inversion.loss.measure(view).values()
    teacher = inversion.loss.members[1].teacher
    assert teacher is not None
    logits = teacher.observe(view).logits
    assert values["t1/cross_entropy"] == pytest.approx(F.cross_entropy(logits / 2, TARGETS).item())
    assert values["t1/class_score"] == pytest.approx(-logits[torch.arange(IMAGES), TARGETS].mean().item())
    assert values["t1/accuracy"] == pytest.approx((logits.argmax(1) == TARGETS).double().mean().item())
    assert values["prior"] == pytest.approx(FORMULATION.prior_loss(view).item())
    teachers = [
        0.7 * values[f"{t}/cross_entropy"]
        + 0.1 * values[f"{t}/class_score"]
        + 1.3 * values[f"{t}/bn_matching#1"]
        + 0.05 * values[f"{t}/bn_matching#2"]
        for t in ("t0", "t1")
    ]
    assert values["loss"] == pytest.approx(values["prior"] + teachers[0] / 3 + 2 * teachers[1] / 3)


def test_targets_are_each_teachers_own() -> None:
    """A teacher whose classes are numbered backwards, with targets to match, says the same."""
    straight, backwards = net(0), net(0)
    backwards.head.weight.copy_(backwards.head.weight.flip(0))
    backwards.head.bias.copy_(backwards.head.bias.flip(0))
    first, second = member(0, straight), member(0, backwards)
    second = EnsembleMember(second.profile, 1.0, 3 - TARGETS, second.teacher)
    view = draw_view()
    one, other = (make([m], cells=uneven(1)).loss.gradient(view, {0: 1.0}) for m in (first, second))
    torch.testing.assert_close(one[1], other[1], rtol=1e-12, atol=1e-15)


# --- who acts -----------------------------------------------------------------------------------------


def test_all_act_with_weights_that_sum_to_one() -> None:
    assert make().weights_at(5) == {0: pytest.approx(1 / 3), 1: pytest.approx(2 / 3)}


def test_teachers_take_turns() -> None:
    members = [member(t, net(t)) for t in range(3)]
    assert [make(members, acting="turn").weights_at(s) for s in range(4)] == [
        {0: 1.0},
        {1: 1.0},
        {2: 1.0},
        {0: 1.0},
    ]


def test_teachers_are_drawn_by_seed_and_step() -> None:
    members = [member(t, net(t), weight=1.0 + t) for t in range(3)]
    inversion = make(members, acting="random", acting_count=2)
    drawn = [inversion.weights_at(s) for s in range(40)]
    assert drawn == [make(members, acting="random", acting_count=2).weights_at(s) for s in range(40)]
    assert {tuple(d) for d in drawn} == {(0, 1), (0, 2), (1, 2)}
    assert all(sum(d.values()) == pytest.approx(1) for d in drawn)
    assert all(d[2] / d[1] == pytest.approx(3 / 2) for d in drawn if tuple(d) == (1, 2))


def test_teachers_are_drawn_once_a_batch() -> None:
    """Each batch, by its seed, has teachers of its own from the first step to the last."""
    members = [member(t, net(t), weight=1.0 + t) for t in range(3)]
    batches = []
    for seed in range(20):
        inversion = make(members, acting="random", acting_count=2, acting_per="batch")
        inversion.seed = seed
        drawn = {tuple(inversion.weights_at(s)) for s in range(20)}
        assert len(drawn) == 1
        batches += drawn
    assert {*batches} == {(0, 1), (0, 2), (1, 2)}


def test_the_best_images_are_those_of_the_batchs_own_teachers() -> None:
    members = [member(t, net(t)) for t in range(3)]
    inversion = make(members, acting="random", acting_per="batch", best_every=1, iterations=2)
    (own,) = inversion.weights_at(0)
    finish(inversion)
    best = inversion.guard.best
    inversion.image.load_state_dict(best.tensors)
    alone = make([members[own]]).loss.measure(inversion.image().detach())
    assert best.loss == pytest.approx(float(alone.total), rel=1e-12)


@pytest.mark.parametrize("acting", ["turn", "random"])
def test_only_acting_teachers_count(acting: str) -> None:
    networks = [net(0), net(1)]
    members = [member(t, n) for t, n in enumerate(networks)]
    inversion, view = make(members, acting=acting, cells=uneven(2)), draw_view()
    for step in range(4):
        (chosen,) = inversion.weights_at(step)
        record, gradient, _ = inversion.loss.gradient(view, inversion.weights_at(step))
        leaf = view.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(plain_loss(leaf, networks[chosen : chosen + 1], [1.0]), leaf)
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-12
        assert record.names == (f"t{chosen}",)
    finish(inversion)


# --- the loop -----------------------------------------------------------------------------------------

VIEWS = Compose((Resize(8), Jitter(2, "wrap", False), Flip(0.5, False)))


def images_of(inversion: Inversion) -> torch.Tensor:
    finish(inversion)
    return inversion.result()


@pytest.mark.parametrize("recompute", [False, True])
def test_the_same_recipe_gives_the_same_bits(recompute: bool) -> None:
    first, second = (images_of(make(transform=VIEWS, recompute=recompute)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_loop_is_adam_on_the_plain_loss() -> None:
    networks = [net(0), net(1)]
    members = [member(0, networks[0]), member(1, networks[1], 2.0)]
    images = images_of(make(members, iterations=30, schedule="constant", cells=uneven(2)))
    twin = FourierImage(IMAGES, 8, decay=1.0, decorrelate=False, dtype=torch.float64)
    twin.randomize(0.5, generator(1))
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.05, betas=(0.5, 0.9))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = plain_loss(twin(), networks, (1.0, 2.0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(images, twin().detach(), rtol=0, atol=1e-9)
    assert losses[-1] < 0.9 * losses[0]


def test_the_gradient_passes_through_the_view() -> None:
    """A step on a mirrored, shifted view is the plain step on plain images that look like it."""
    mirrored = make(iterations=1, transform=Compose((Flip(1.0, False),)), pixels=True, lr=0.1, schedule="constant")
    straight = make(iterations=1, pixels=True, lr=0.1, schedule="constant")
    with torch.no_grad():
        mirrored.image.set_image(draw_view())
        straight.image.set_image(draw_view().flip(3))
    torch.testing.assert_close(images_of(mirrored), images_of(straight).flip(3), rtol=0, atol=1e-12)


def test_steps_are_numbered_and_the_last_says_so() -> None:
    steps = finish(make(iterations=12))
    assert [step.number for step in steps] == list(range(12))
    assert [step.last for step in steps] == [False] * 11 + [True]


def test_a_caller_may_leave_and_go_on() -> None:
    left, whole_run = make(transform=VIEWS), make(transform=VIEWS)
    for step in left:
        if step.number == 2:
            break
    assert left.step == 3
    assert [step.number for step in left] == [3, 4, 5]
    assert torch.equal(left.result(), images_of(whole_run))


def test_learning_rates_follow_the_schedule() -> None:
    """Adam's first step moves every pixel by lr x multiplier."""
    for schedule, warmup, expected in (("cosine", 0, 0.1), ("cosine", 4, 0.025), ("constant", 4, 0.025)):
        stage = LiveStage(8, NO_CHANGE, Adam(lr=0.1, warmup=warmup, schedule=schedule))  # type: ignore[arg-type]
        inversion = make(stages=[stage], pixels=True)
        start = inversion.image().detach().clone()
        assert next(iter(inversion)).lr == pytest.approx(expected)
        moved = (inversion.image().detach() - start).abs()
        assert moved.median().item() == pytest.approx(expected, rel=1e-4)


def test_a_stage_moves_its_share_of_the_images_alone_and_the_others_are_seen() -> None:
    """The first images take the step that they take where all move, as the loss sees the others; these wait."""
    step = Adam(lr=0.05, schedule="constant")
    rounds = make(stages=[LiveStage(1, NO_CHANGE, step, moving=2 / IMAGES), LiveStage(1, NO_CHANGE, step)])
    whole_batch = make(stages=[LiveStage(1, NO_CHANGE, step)])
    start = rounds.image().detach().clone()
    next(iter(rounds))
    next(iter(whole_batch))
    first = rounds.image().detach().clone()
    assert torch.equal(first[2:], start[2:])
    assert torch.equal(first[:2], whole_batch.image().detach()[:2])
    next(iter(rounds))
    assert not (rounds.image().detach() == start).flatten(1).all(1).any()


def test_each_stage_starts_a_fresh_optimiser_and_the_last_may_stop_early() -> None:
    stages = [
        LiveStage(3, NO_CHANGE, Adam(lr=0.05)),
        LiveStage(50, NO_CHANGE, Adam(lr=1e-9, schedule="constant")),
    ]
    inversion = make(stages=stages)
    inversion.early_stopping = EarlyStopping(patience=4, threshold=0.01)
    steps = finish(inversion)
    assert steps[-1].last and inversion.step == 3 + 1 + 5
    assert [step.stage for step in steps] == [0] * 3 + [1] * 6
    assert {step.number: step.event for step in steps if step.event} == {
        0: "stage 1 of 2: 3 steps",
        3: "stage 2 of 2: 50 steps",
        8: "no progress: the run ends here",
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_teachers_that_take_turns_are_followed_together(order: tuple[int, ...]) -> None:
    """Losses that differ between them are no progress and no lack of it, whoever is first."""
    stage = LiveStage(60, NO_CHANGE, Adam(lr=1e-9, schedule="constant", early_stopping=4))
    inversion = make([member(i, net(i)) for i in order], stages=[stage], acting="turn")
    steps = finish(inversion)
    totals = [float(step.record.total) for step in steps]
    assert abs(totals[0] - totals[1]) > 0.05  # else nothing could be mistaken
    assert len(steps) == 1 + 1 + 5 and steps[-1].event == "no progress: the run ends here"
    heard: list[float] = []
    turns = make([member(i, net(i)) for i in order], acting="turn", iterations=9)
    turns.enough = Enough(0.5)
    turns.enough.update = lambda asked: heard.append(asked) or False  # type: ignore[method-assign]
    asked = [float(step.record.total - step.record.prior) for step in finish(turns)]
    assert heard == pytest.approx([(a + b) / 2 for a, b in pairwise(asked)])


def test_what_was_heard_in_an_earlier_stage_does_not_count() -> None:
    stages = [LiveStage(2, NO_CHANGE, Adam(lr=0.05)), LiveStage(4, Resize(4), Adam(lr=0.05, enough=0.5))]
    inversion, heard = make(stages=stages, acting="turn"), []
    assert inversion.enough is not None
    inversion.enough.update = lambda asked: heard.append(asked) or False  # type: ignore[method-assign, func-returns-value]
    asked = [float(step.record.total - step.record.prior) for step in finish(inversion)]
    pairs = [(a + b) / 2 for a, b in pairwise(asked)]
    assert heard == pytest.approx([pairs[0], *pairs[2:]])


def test_a_run_ends_where_nothing_is_left_to_pull() -> None:
    """The priors' part of the loss does not count, and a resumed run ends at the same step."""
    plan = LiveStage(200, NO_CHANGE, Adam(lr=0.05, schedule="constant", enough=0.93))
    inversion = make(stages=[plan])
    steps = finish(inversion)
    asked = [float(step.record.total - step.record.prior) for step in steps]
    assert 10 < len(steps) < 200 and steps[-1].last and "nothing is left to pull" in steps[-1].event
    assert all(value <= 0.93 * asked[0] for value in asked[-10:]) and asked[-11] > 0.93 * asked[0]
    measured = make(stages=[plan], best_every=1000)
    finish(measured)
    assert measured.guard.best.step == len(steps), "the images at an early end are measured, too"
    again = make(stages=[plan])
    again.load_state(*inversion.state())
    assert not finish(again), "what has ended does not go on"
    first = make(stages=[plan])
    for step in first:
        if step.number == len(steps) - 5:
            break
    second = make(stages=[plan])
    second.load_state(*first.state())
    finish(second)
    assert second.step == inversion.step and torch.equal(second.image(), inversion.image())


def test_decisions_follow_the_owner_s_loss() -> None:
    """Ranks on devices of different kinds round differently; here the owner sees no progress at all."""

    def from_owner(tensor: torch.Tensor) -> None:
        if tensor.ndim == 0:
            tensor.fill_(7.0)

    stage = LiveStage(50, NO_CHANGE, Adam(lr=0.05, schedule="constant", early_stopping=4))
    inversion = make(stages=[stage], from_owner=from_owner, best_every=2)
    assert finish(inversion)[-1].last
    assert inversion.step == 1 + 5 and inversion.guard.best.loss == 7.0


def test_plateau_shrinks_the_rate() -> None:
    optimizer = Adam(lr=1e-9, schedule="plateau", plateau_factor=0.5, plateau_patience=2)
    inversion = make(stages=[LiveStage(9, NO_CHANGE, optimizer)])
    steps = finish(inversion)
    assert inversion.plateau is not None
    assert [step.number for step in steps if step.event] == [3, 6]
    assert "5e-10" in steps[3].event and steps[4].lr == 5e-10
    assert inversion.plateau.multiplier == 0.25  # 1 step improves, then 3 and 3 do not


def test_the_best_image_is_kept() -> None:
    inversion = make(lr=5.0, schedule="constant", iterations=12, best_every=1, transform=VIEWS)
    seen: list[torch.Tensor] = []
    for _ in inversion:
        seen.append(inversion.image().detach().clone())
    losses = [float(inversion.loss.measure(image).total) for image in seen]
    best = min(range(12), key=losses.__getitem__)
    assert best != 11, "the test needs a loss that rises again"
    assert inversion.guard.best.step == best + 1
    assert inversion.guard.best.loss == losses[best]
    assert torch.equal(inversion.result(), seen[best].clamp(0, 1))
    assert torch.equal(inversion.image(), seen[-1]), "reading the result leaves the image as it is"


def test_without_measuring_the_last_image_is_the_result() -> None:
    inversion = make(lr=1.0, schedule="constant", iterations=12)
    finish(inversion)
    assert torch.equal(inversion.result(), inversion.image().clamp(0, 1))


# --- stop and resume ----------------------------------------------------------------------------------


def resumable() -> Inversion:
    """Three stages with everything that has a state."""
    second = Adam(lr=0.3, schedule="plateau", plateau_factor=0.5, plateau_patience=0)
    third = Adam(lr=0.3, schedule="plateau", plateau_factor=0.5, plateau_patience=1, warmup=2, early_stopping=3)
    stages = [
        LiveStage(4, Compose((Resize(4), Jitter(1, "wrap", False))), Adam(lr=0.1, warmup=2)),
        LiveStage(4, VIEWS, second),
        LiveStage(40, NO_CHANGE, third),
    ]
    inversion = make(stages=stages, best_every=2, acting="random")
    inversion.early_stopping = EarlyStopping(patience=3, threshold=0.02)
    return inversion


@pytest.mark.parametrize("step", [2, 3, 4, 5, 7, 8, 9, 11, 12, 13])
def test_a_resumed_run_is_the_uninterrupted_one(step: int) -> None:
    saved: list = []
    first = resumable()
    for taken in first:
        if taken.save:
            saved.append((first.step, copy.deepcopy(first.state())))
        first.ask(save=first.step == step - 1)
    ((at, state),) = saved
    assert at == step < first.step < first.iterations
    second = resumable()
    second.load_state(*state)
    assert finish(second)[-1].last
    assert second.step == first.step
    assert torch.equal(second.image(), first.image())
    assert second.guard.best.step == first.guard.best.step and second.guard.best.loss == first.guard.best.loss
    assert torch.equal(second.result(), first.result())


def test_steps_are_saved_every_so_many() -> None:
    assert [step.number for step in make(save_every=2, poll_every=5) if step.save] == [1, 3, 5]


def test_a_longer_last_stage_goes_on() -> None:
    """Also where nothing is left to do: a finished run with more iterations."""
    short = make(iterations=4, schedule="constant")
    finish(short)
    longer = make(iterations=6, schedule="constant")
    longer.load_state(*short.state())
    assert [step.number for step in longer] == [4, 5]
    assert torch.equal(longer.result(), images_of(make(iterations=6, schedule="constant")))


@pytest.mark.parametrize(
    ("name", "machines", "steps"),
    [
        ("early_stopping", [EarlyStopping(patience=3, threshold=0.9) for _ in range(2)], 5),
        ("enough", [Enough(0.999, steps=4) for _ in range(2)], 4),
    ],
)
def test_what_ended_a_run_waits_anew_where_it_goes_on(name: str, machines: Sequence[object], steps: int) -> None:
    first, again = (make(iterations=40) for _ in range(2))
    for inversion, machine in zip((first, again), machines, strict=True):
        setattr(inversion, name, machine)
    finish(first)
    assert first.ended and first.step < 30
    again.load_state(*copy.deepcopy(first.state()), goes_on=True)
    finish(again)
    assert again.step == first.step + steps


@pytest.mark.parametrize("step", [2, 4, 9])
def test_a_stopped_run_resumes(step: int) -> None:
    whole_run = resumable()
    finish(whole_run)
    first = resumable()
    for taken in first:
        if taken.stop:
            break
        first.ask(stop=first.step == step - 1)
    assert first.step == step
    second = resumable()
    second.load_state(*copy.deepcopy(first.state()))
    finish(second)
    assert second.step == whole_run.step
    assert torch.equal(second.result(), whole_run.result())


def test_flags_are_read_when_polled() -> None:
    inversion = make(iterations=12, poll_every=4)
    for taken in inversion:
        if taken.stop:
            break
        inversion.ask(stop=True)
    assert inversion.step == 4


# --- what is not finite -------------------------------------------------------------------------------


def climbing(poll_every: int) -> tuple[Inversion, list[torch.Tensor]]:
    """Pixels brighten by 0.03 a step from 0.5 and `t1` fails above a mean of 0.65; with the images so far."""
    raw = ModelCard("raw", "test", 8, 4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    members = [member(0, net(0)), member(1, Cliff(net(1), 0.65), card=raw), member(2, net(2))]
    formulation = Formulation(
        (
            CrossEntropy(weight=1e-6, temperature=1.0),
            BNMatching(weight=1e-6, convention="relative"),
            L2Prior(weight=-100.0),
        )
    )
    inversion = make(
        members, iterations=20, formulation=formulation, pixels=True, lr=0.03, schedule="constant",
        poll_every=poll_every, cells=uneven(3),
    )  # fmt: skip
    images = [inversion.image().detach().clone()]
    return inversion, images


@pytest.mark.parametrize("poll_every", [1, 4])
def test_a_teacher_that_is_not_finite_stops_the_run(poll_every: int) -> None:
    inversion, images = climbing(poll_every)
    with pytest.raises(NotFiniteError, match=r"of teacher t1 is not finite at step 6"):
        for _ in inversion:
            images.append(inversion.image().detach().clone())
    first_bad = next(i for i, image in enumerate(images) if float(image.mean()) > 0.65)
    assert first_bad == 6
    restored = inversion.image().detach()
    assert torch.isfinite(inversion.loss.measure(restored).total), "the image restored is a good one"
    good = images[:first_bad]
    assert any(torch.equal(restored, image) for image in good)
    assert torch.equal(restored, good[-1] if poll_every == 1 else good[3])


def test_the_first_step_can_fail() -> None:
    raw = ModelCard("raw", "test", 8, 4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    inversion = make([member(0, Cliff(net(0), -1.0), card=raw)], pixels=True)
    with pytest.raises(NotFiniteError, match="of teacher t0 is not finite at step 0; no step was taken"):
        finish(inversion)
    assert torch.equal(inversion.image(), torch.full((IMAGES, 3, 8, 8), 0.5, dtype=torch.float64))


def test_fixed_point_sums_notice_what_is_not_finite() -> None:
    inversion, _ = climbing(1)
    inversion.loss.reduction = FixedPointSum()
    with pytest.raises(NotFiniteError, match="of teacher t1 is not finite at step 6"):
        finish(inversion)


# --- sums in fixed point ------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
def test_fixed_point_sums_do_not_depend_on_the_order(recompute: bool) -> None:
    members = [member(t, net(t)) for t in range(3)]
    cells, view = uneven(3), draw_view()
    orders = [cells, cells[::-1], cells[2:] + cells[:2]]
    results = []
    for order in orders:
        inversion = make(members, cells=order, recompute=recompute, reduction=FixedPointSum())
        record, gradient, _ = inversion.loss.gradient(view, inversion.weights_at(0))
        results.append((record.total, gradient, images_of(inversion)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    plain = make(members, cells=cells)
    record, gradient, _ = plain.loss.gradient(view, plain.weights_at(0))
    torch.testing.assert_close(results[0][0], record.total, rtol=1e-10, atol=0)
    assert float((results[0][1] - gradient).norm() / gradient.norm()) < 1e-9


def test_floating_point_sums_do_depend_on_it() -> None:
    """Why fixed point exists: the same cells in another order differ in the last bits."""
    members = [member(t, net(t)) for t in range(3)]
    cells, view = uneven(3), draw_view()
    orders = [cells, cells[::-1]]
    inversions = [make(members, cells=order) for order in orders]
    first, second = (i.loss.gradient(view, i.weights_at(0))[1] for i in inversions)
    assert not torch.equal(first, second)
