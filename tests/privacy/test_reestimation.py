"""Re-estimation: hand values, and statistics that were planted must be recognised and plain ones left alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from small_networks import CARD, small_net, textured

from ensemble.privacy import augmentation
from ensemble.privacy.augmentation import Explanation, _as_carded, explained_by, explanation
from ensemble.privacy.candidates import Candidate, Claimed, candidates
from ensemble.privacy.moments import Moments, moments_of, stored, with_stored
from ensemble.privacy.reestimation import Explained, distances, explain, floors, planted, scores, share
from ensemble.training.augment import padded_crop
from ensemble.training.recipe import parse_training_recipe

BATCHES, SIZE = 12, 64


@cache
def reference() -> tuple[dict[str, Candidate], dict[str, Moments]]:
    known = {c.name: c for c in candidates(CARD)}
    images = textured(BATCHES * SIZE, seed=1)
    return known, {name: moments_of(small_net(), c.batches(images, CARD, SIZE, 0)) for name, c in known.items()}


def trained_with(candidate: Candidate) -> Moments:
    """What a network stores that saw other images of the same kind so."""
    found = moments_of(small_net(), candidate.batches(textured(40 * SIZE, seed=2), CARD, SIZE, 5))
    return planted(found, 1, seed=3)


def said_of(candidate: Candidate) -> Explanation:
    known, found = reference()
    return explanation(trained_with(candidate), found, known, seed=0)


def test_statistics_of_smaller_batches_are_not_called_mixed() -> None:
    """Batches an eighth as large scatter more than those that they are compared with."""
    tried = [Candidate(crop, mix) for crop in ("none", "mirrored") for mix in ("none", "cutmix", "mixup")]
    found = {candidate.name: reference()[1][candidate.name] for candidate in tried}
    plain, mixed = found["no crops"], found["no crops, CutMix"]
    right = []
    for seed in range(20):
        batches = Candidate().batches(textured(10 * SIZE, seed=seed + 2), CARD, SIZE // 8, seed)
        seen = planted(moments_of(small_net(), batches), 1, seed)
        said = explain(seen, found, seed)
        unmixed = share(seen, plain, mixed, seed, said.wider).holds(0)
        right.append(not said.explained or (unmixed and "no crops" in said.alike))
    assert sum(right) >= 19  # 16 where planted statistics scatter by sampling alone


@pytest.mark.parametrize(("momentum", "batches"), [(0.5, 3.0), (1.0, 1.0), (0.1, 19.0)])
def test_the_networks_own_momentum_says_how_many_batches_are_remembered(momentum: float, batches: float) -> None:
    net = small_net()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
    found = moments_of(net, Candidate().batches(textured(4 * SIZE), CARD, SIZE, 0))
    usual = replace(found, momentum=0.1)
    ratio = (floors(found) / floors(usual)).square()
    np.testing.assert_allclose(ratio, (1 / batches + 1 / 4) / (1 / 19 + 1 / 4), rtol=1e-6)


def test_a_cumulative_average_has_the_noise_of_the_batches_alone() -> None:
    net = small_net()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    found = moments_of(net, Candidate().batches(textured(4 * SIZE), CARD, SIZE, 0))
    assert found.momentum == 0
    made = planted(found, 3, 0)
    np.testing.assert_allclose(made.mean, found.average().mean.expand_as(made.mean), atol=0.02)


def test_a_layer_whose_input_never_varies_is_left_out() -> None:
    net = small_net()
    with torch.no_grad():
        net[3].weight.zero_()
        net[4].running_mean.zero_(), net[4].running_var.zero_()
    images = textured(BATCHES * SIZE, seed=1)
    said = explained_by(net, CARD, images, None, 0, lambda text: None)
    assert all(np.isfinite(value) for value in said.explained.fit.values())
    assert ("4", None, "no: its input never varies") in said.part.tables[1].rows


def test_the_distance_of_one_layer_by_hand() -> None:
    about = Moments((("bn", 2),), torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[1.0, 4.0]]).double())
    other = Moments((("bn", 2),), torch.tensor([[0.5, 1.0]]).double(), torch.tensor([[1.0, 8.0]]).double())
    expected = np.sqrt((0.25 + np.log(2) ** 2 / 2) / 2)
    assert float(distances(other, about)[0, 0]) == pytest.approx(expected)
    assert float(distances(about, about)[0, 0]) == 0


def test_the_floor_is_how_far_planted_statistics_are_from_other_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    made = Moments(
        (("bn", 200),),
        0.1 * torch.randn(40, 200, generator=rng, dtype=torch.float64),
        (0.1 * torch.randn(40, 200, generator=rng, dtype=torch.float64)).exp(),
    )
    seen = distances(planted(made[::2], 50, 0), made[1::2]).square().mean().sqrt()
    # half of the batches are planted from, half judge: 1/19 + 1/20, and 1/20 again of what is planted from
    expected = 0.1 * np.sqrt(1.5 * (1 / 19 + 2 / 20))
    assert float(seen) == pytest.approx(expected, rel=0.1)
    assert float(floors(made[1::2])[0]) == pytest.approx(0.1 * np.sqrt(1.5 * (1 / 19 + 1 / 20)), rel=0.1)


def test_scores_read_the_first_half_of_the_layers() -> None:
    floor = torch.ones(4, dtype=torch.float64)
    near, far = torch.tensor([0.0, 0.0, 9.0, 9.0]).double(), torch.tensor([3.0, 3.0, 0.0, 0.0]).double()
    assert float(scores(near, floor)) == 0
    assert float(scores(far, floor)) == pytest.approx(np.log(2))


def test_a_padded_crop_holds_the_image_and_zeros() -> None:
    image = torch.arange(1.0, 17).view(1, 1, 4, 4)
    rng = torch.Generator().manual_seed(1)
    made = torch.cat([padded_crop(image, 1, True, rng) for _ in range(60)])
    assert made.shape == (60, 1, 4, 4)
    blank = (made == 0).sum((1, 2, 3))
    assert set(blank.tolist()) <= {0, 4, 7} and len(set(blank.tolist())) == 3  # shifts by 0, 1 or 1 and 1
    sets = {tuple(sorted(row[row > 0].tolist())) for row in made}
    assert tuple(float(i) for i in range(1, 17)) in sets


@pytest.mark.parametrize("crop", ["none", "mirrored", "black"])
@pytest.mark.parametrize("mix", ["none", "cutmix", "cutout"])
def test_planted_statistics_are_recognised(crop: str, mix: str) -> None:
    candidate = Candidate(crop, mix)  # type: ignore[arg-type]
    said = said_of(candidate)
    assert candidate.name in said.explained.alike, said.explained.names[:3]
    assert said.explained.explained
    by_question = {finding.question: finding for finding in said.part.findings}
    mixed = by_question["Were images mixed by CutMix?"]
    if mix == "cutmix":
        assert mixed.word in ("shown", "indicated") and mixed.value is not None and mixed.value > 0.5
    else:
        assert mixed.word == "not distinguishable here" or (mix == "cutout" and mixed.word == "not tested"), mixed
    if crop == "black":
        assert "black" in by_question["Were images cropped or padded?"].reading


@pytest.mark.parametrize("name", ["CIFAR-10's mean and std", "mean 0.5, std 0.5", "mean 0, std 1"])
def test_a_wrong_mean_and_std_is_preprocessing_and_no_augmentation(name: str) -> None:
    said = said_of(Candidate(normalisation=name))
    assert said.part.figures["augmentation"] in ("preprocessing", "undecided")
    assert said.part.figures.get("cutmix_share") is None
    assert all(finding.word == "undecided" for finding in said.part.findings[1:])


def test_wrong_normalisations_of_the_list_are_named() -> None:
    said = said_of(Candidate(normalisation="mean 0.5, std 0.5"))
    assert said.part.figures["augmentation"] == "preprocessing"
    assert "mean 0.5, std 0.5" in said.part.findings[0].reading


@pytest.mark.parametrize("factor", [1.15, 1.2, 1.25])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_larger_std_is_not_called_mixup_in_a_shallow_network(factor: float, channels: int) -> None:
    """Both make the first layer's variance smaller, by two thirds under mixup; two layers have little else to say."""
    card = CARD if channels == 3 else replace(CARD, mean=(0.45,), std=(0.23,))
    torch.manual_seed(1)
    layers = [torch.nn.Conv2d(channels, 12, 3, bias=False), torch.nn.BatchNorm2d(12), torch.nn.ReLU()]
    layers += [torch.nn.Conv2d(12, 16, 3, bias=False), torch.nn.BatchNorm2d(16)]
    net, known = torch.nn.Sequential(*layers).eval(), {c.name: c for c in candidates(card)}
    images = textured(BATCHES * SIZE, seed=1)
    found = {name: moments_of(net, c.batches(images, card, SIZE, 0)) for name, c in known.items()}
    trained = replace(card, std=tuple(factor * value for value in card.std))
    seen = moments_of(net, Candidate("mirrored").batches(textured(40 * SIZE, seed=2), trained, SIZE, 5))
    said = explanation(planted(seen, 1, seed=3), found, known, seed=0)
    mixup = next(finding for finding in said.part.findings if "mixup" in finding.question)
    assert mixup.word != "shown", (mixup, said.explained.names[:3])


def test_recompressed_images_are_not_called_mixed() -> None:
    said = said_of(Candidate(jpeg=50))
    assert said.part.figures["augmentation"] in ("preprocessing", "undecided")


def test_what_no_candidate_explains_is_undecided() -> None:
    known, found = reference()
    own = trained_with(Candidate())
    strange = Moments(own.layers, own.mean + own.var.sqrt(), 2.5 * own.var)
    said = explanation(strange, found, known, seed=0)
    assert said.part.figures["augmentation"] == "undecided" and said.best is None


def test_the_share_of_mixed_batches_is_recovered() -> None:
    _, found = reference()
    plain, mixed = found[Candidate("mirrored").name], found[Candidate("mirrored", "cutout").name]
    a, b = plain.average(), mixed.average()
    for p in (0.0, 0.5, 1.0):
        own = Moments(a.layers, (1 - p) * a.mean + p * b.mean, (1 - p) * a.var + p * b.var)
        estimate = share(own, plain, mixed)
        assert estimate.value == pytest.approx(p, abs=1e-6)
        assert (estimate.low > 0) == (p > 0)
        assert estimate.width < 0.5


def test_with_stored_statistics_the_network_is_explained_by_them() -> None:
    known, found = reference()
    net = with_stored(small_net(), trained_with(Candidate("black")))
    own = stored(net, [name for name, _ in found["no crops"].layers])
    assert "black" in explanation(own, found, known, 0).explained.best


@pytest.mark.parametrize(
    ("crop", "word"), [("mirrored", "consistent"), ("black", "not consistent"), ("none", "not consistent")]
)
def test_a_claim_is_held_against_what_was_done(crop: str, word: str) -> None:
    """The recipe claims mirrored crops and leaves its statistics as they are."""
    data = {"model": "small", "data": {"path": "nowhere"}, "schedule": {"recalibrate_bn": False}}
    claim = Claimed(parse_training_recipe({**data, "augmentation": {"crop_padding": 2}}), CARD)
    known, found = reference()
    images = textured(BATCHES * SIZE, seed=1)
    with_claim = {**found, claim.name: moments_of(small_net(), claim.batches(images, CARD, SIZE, 0))}
    said = explanation(trained_with(Candidate(crop)), with_claim, known, seed=0)  # type: ignore[arg-type]
    assert said.part.figures["claim"] == word, said.part.findings[-1]


def test_a_mix_behind_another_preparation_is_not_gone_on_from() -> None:
    known = {c.name: c for c in (Candidate(jpeg=50), Candidate(), Candidate("none", "cutmix"))}
    jpeg, plain, mixed = known
    told = Explained((jpeg, mixed, plain), {}, {}, (jpeg, mixed, plain), True)
    assert _as_carded(told, known) == plain
    assert _as_carded(replace(told, alike=(jpeg, mixed)), known) is None
    assert _as_carded(replace(told, names=(mixed, jpeg, plain), alike=(mixed, jpeg)), known) == mixed


def test_a_recipe_that_takes_statistics_anew_claims_plain_images() -> None:
    data = {"model": "small", "data": {"path": "nowhere"}, "augmentation": {"cutmix": 1.0}}
    claim, images = Claimed(parse_training_recipe(data), CARD), textured(64)
    made = zip(claim.batches(images, CARD, 32, 0), Candidate().batches(images, CARD, 32, 0), strict=True)
    assert all(torch.equal(a, b) for a, b in made)


@pytest.mark.parametrize("recalibrate", [True, False])
def test_a_claim_is_of_the_mean_and_std_of_its_own_network(recalibrate: bool) -> None:
    data = {"model": "small", "data": {"path": "nowhere"}, "schedule": {"recalibrate_bn": recalibrate}}
    recipe = parse_training_recipe({**data, "augmentation": {"crop_padding": 0, "flip": False}})
    claim = Claimed(recipe, replace(CARD, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    images = textured(64)
    made = torch.cat([*claim.batches(images, CARD, 32, 0)])
    expected = sorted(images.float().div(255).flatten().tolist())
    np.testing.assert_allclose(sorted(made.flatten().tolist()), expected, atol=1e-6)


def alike(seen: Candidate, *rivals: Candidate, card_fit: float = 1.0) -> Explanation:
    """Where the first of `rivals`, which are not told from each other, is the best."""
    known, found = reference()
    names = tuple(rival.name for rival in rivals)
    fit = {name: card_fit if known[name].as_carded else 1.0 for name in known}
    rest = tuple(name for name in known if name not in names)
    said = Explained((*names, *rest), dict.fromkeys(known, 0.0), fit, names, True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(augmentation, "explain", lambda *_: said)
        patched.setattr(augmentation, "recovered", lambda _, truths, *__: {n: float(n in names) for n in truths})
        return explanation(trained_with(seen), found, known, seed=0)


RIVAL = Candidate(normalisation="mean 0, std 1")


def test_what_is_prepared_as_its_card_says_is_not_accused_where_another_preparation_is_alike() -> None:
    said = alike(Candidate("mirrored"), RIVAL, Candidate("mirrored"))
    assert said.part.findings[0].word == "consistent" and f"so would: {RIVAL.name}." in said.part.findings[0].reading
    assert said.best == Candidate("mirrored")
    accused = alike(Candidate("mirrored"), RIVAL)
    assert accused.part.findings[0].word == "not consistent" and accused.best is None
    assert accused.part.figures["augmentation"] == "preprocessing"
    far = alike(Candidate("mirrored"), RIVAL, Candidate("mirrored"), card_fit=2.6)
    assert far.part.findings[0].word == far.part.figures["augmentation"] == "undecided" and far.best is None


@pytest.mark.parametrize(
    ("rivals", "figure"),
    [
        ((Candidate("mirrored"),), "crops with mirrored borders"),
        ((Candidate("mirrored"), Candidate("black")), "undecided"),
        ((Candidate("mirrored"), Candidate("mirrored", "cutmix")), "undecided"),
        ((Candidate("mirrored"), RIVAL), "undecided"),
    ],
)
def test_what_fail_if_reads_is_undecided_where_several_augmentations_are_alike(
    rivals: tuple[Candidate, ...], figure: str
) -> None:
    said = alike(Candidate("mirrored"), *rivals)
    crops = said.part.findings[1]
    assert said.part.figures["augmentation"] == figure
    assert crops.word != "undecided" or figure == "undecided"
    assert "scores rank candidates" in crops.evidence


def test_a_rival_that_is_never_named_is_called_so() -> None:
    crops = alike(Candidate("mirrored"), Candidate("mirrored")).part.findings[1]
    assert crops.reading.endswith("Planted statistics of no crops are never named: such images do not show them.")
