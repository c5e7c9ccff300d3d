"""What is said of few images, against simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ensemble.evaluation import cautions
from ensemble.evaluation.density_coverage import density_coverage
from ensemble.evaluation.frechet import frechet_distance
from ensemble.evaluation.inception_score import inception_score
from ensemble.evaluation.neighbours import nearest_neighbours


@pytest.mark.parametrize("classes", [3, 10])
def test_the_score_is_given_from_where_its_bias_is_a_hundredth(classes):
    n, rng = cautions.images_for_score(classes), np.random.default_rng(0)
    logs = [math.log(inception_score(np.eye(classes)[rng.integers(classes, size=n)])[0]) for _ in range(2000)]
    bias = math.log(classes) - np.mean(logs)
    assert bias == pytest.approx((classes - 1) / (2 * n), rel=0.1) and bias == pytest.approx(0.01, rel=0.1)


def test_of_the_score():
    assert cautions.of_score(449, 10) == "no Inception Score: of 10 classes it takes 450 images, and here are 449"
    assert "biased downwards, by up to 1.0%" in (cautions.of_score(450, 10) or "")
    assert "by up to 0.1%" in (cautions.of_score(4999, 10) or "")
    assert cautions.of_score(5000, 10) is None
    assert "takes 49950 images" in (cautions.of_score(5000, 1000) or "")


def test_fewer_images_are_farther_and_cover_less():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(500, 8))
    few, many = ([rng.normal(size=(n, 8)) for _ in range(10)] for n in (30, 300))
    assert min(frechet_distance(x, real) for x in few) > max(frechet_distance(x, real) for x in many)
    assert max(density_coverage(real, x)[1] for x in few) < min(density_coverage(real, x)[1] for x in many)


def test_of_distances():
    for n, width in ((1999, 64), (2048, 2048), (100, 640)):
        said = cautions.of_distances(n, width) or ""
        assert f"with {n} images in {width} features" in said and "biased upwards" in said
    assert cautions.of_distances(2000, 64) is None and cautions.of_distances(2049, 2048) is None


def test_of_memorisation():
    """Clopper and Pearson's interval of 50 in 100 is 0.3983 to 0.6017."""
    assert cautions.of_memorisation(100) == (
        "with 100 images chance moves the share nearer to training images by 10% or more"
    )
    assert "by 50% or more" in (cautions.of_memorisation(1) or "")
    assert cautions.of_memorisation(2000) is None


def test_chance_moves_the_share_at_least_so_much():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(600):
        images, train, test = rng.normal(size=(100, 4)), rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
        shares.append(nearest_neighbours(images, train, test).closer_to_train)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert 1.96 * np.std(shares) > 0.93 * 0.0962
