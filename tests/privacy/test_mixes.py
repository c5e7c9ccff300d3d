"""The classifier of mixes finds them in images that it has not seen; its features, by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from ensemble.image.dead_leaves import dead_leaves
from ensemble.machine.rng import generator
from ensemble.privacy.rates import auc
from ensemble.privacy.study.mix_features import mix_features
from ensemble.privacy.study.mixes import KINDS, MixClassifier, mixed, train_mix_classifier
from ensemble.training.augment import padded_crop


@cache
def leaves(n: int, seed: int) -> torch.Tensor:
    """Soft, with a shading of their own: (N, 3, 32, 32) in [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    made = torch.nn.functional.avg_pool2d(dead_leaves(n, 66, 6, 30, rng).float(), 3, 2)[:, :, :32, :32]
    shading = torch.nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=rng), size=32, mode="bilinear")
    return 0.6 * made + 0.4 * shading


@cache
def classifier(seed: int = 0, steps: int = 16) -> MixClassifier:
    return train_mix_classifier((255 * leaves(100, 1)).to(torch.uint8), seed, steps)


@cache
def unseen(kind: str) -> torch.Tensor:
    """(80, 4): the scores of unseen images of one kind, which share no image with another kind's."""
    images = leaves(80, 10 + KINDS.index(kind))
    return classifier().scores(mixed(images, kind, images.mean((0, 2, 3), keepdim=True), generator(3, kind)))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_mixed_images_are_found(kind: str) -> None:
    k = KINDS.index(kind)
    mean = [unseen(name)[:, k].view(-1, 20).mean(1) for name in (kind, "plain")]
    assert auc(*mean).value > 0.9
    assert auc(unseen(kind)[:, k], unseen("plain")[:, k]).low > 0.6


def test_images_are_of_their_kind_more_than_of_any_other() -> None:
    found = torch.stack([unseen(kind).mean(0) for kind in KINDS])
    assert found.argmax(0).tolist() == [0, 1, 2, 3]


def test_scores_are_log_probabilities_and_the_classifier_is_frozen() -> None:
    assert torch.allclose(unseen("plain").exp().sum(1), torch.ones(80), atol=1e-5)
    assert not any(p.requires_grad for p in classifier().parameters()) and not classifier().training


def test_a_seed_makes_one_classifier_and_leaves_other_draws_alone() -> None:
    images = (255 * leaves(100, 1)).to(torch.uint8)
    state = torch.random.get_rng_state()
    one, same, other = (train_mix_classifier(images, seed, 2).linear.weight for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_mixed_by_hand() -> None:
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 16, 16) / 16
    colour = torch.full((1, 3, 1, 1), 2.0)
    assert mixed(images, "plain", colour, generator(0)) is not images
    torch.testing.assert_close(mixed(images, "plain", colour, generator(0)), images)
    erased = (mixed(images, "cutout", colour, generator(0)) == 2).all(1).sum((1, 2))
    assert int(erased.min()) > 0 and int(erased.max()) <= 64
    blended = mixed(images, "mixup", colour, generator(0))
    assert (blended.amax((1, 2, 3)) == blended.amin((1, 2, 3))).all()
    torch.testing.assert_close(blended.view(2, 8, -1).mean(1), images.reshape(2, 8, -1).mean(1))
    pasted = mixed(images, "cutmix", colour, generator(0))
    torch.testing.assert_close(pasted.view(2, 8, -1).mean(1), images.reshape(2, 8, -1).mean(1))
    assert (pasted.amax((1, 2, 3)) > pasted.amin((1, 2, 3))).any()


def test_a_line_all_of_whose_pixels_differ_is_the_sharpest() -> None:
    """One edge of luma 0.5 between two columns, of an image that is flat: log 0.51 - log 0.01 above both neighbours."""
    image = torch.zeros(1, 3, 32, 32)
    image[..., 13:] = 0.5
    found, turned = mix_features(image), mix_features(image.transpose(2, 3))
    sharpest = torch.tensor(51.0).log()
    torch.testing.assert_close(found[0, :90].max(), sharpest, rtol=1e-3, atol=0)
    assert float(found[0, 90:180].max()) == 0  # no line the other way
    torch.testing.assert_close(turned[:, :180], found[:, :180])


def test_flat_squares_and_contrast() -> None:
    rough = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    holed = rough.clone()
    holed[..., 4:14, 4:14] = 0.5
    flat, contrast = slice(180, 189), slice(189, 195)
    assert (mix_features(holed)[:, flat] < mix_features(rough)[:, flat]).all()
    assert (mix_features(0.5 * rough)[:, contrast][:, :3] < mix_features(rough)[:, contrast][:, :3]).all()
    assert mix_features(torch.rand(2, 3, 16, 24)).shape == (2, 207)


def test_images_too_small_for_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="16 at least"):
        mix_features(torch.rand(1, 3, 32, 15))


def test_black_borders_are_taken_for_plain_images_more_than_for_pasted_ones() -> None:
    cropped = classifier().scores(padded_crop(leaves(80, 10), 4, True, generator(0))).exp().mean(0)
    assert float(cropped[0]) > float(cropped[1])
    assert float(cropped[1]) < 0.5 * float(unseen("cutmix").exp().mean(0)[1])
