"""What a number of images is too small for, in a line each."""

from __future__ import annotations

from math import exp

from ensemble.evaluation.intervals import clopper_pearson

ENOUGH = 2000
"""Images from which the bias of distances is no longer warned of, where there are more of them than features."""
ENOUGH_FOR_SCORE = 5000


def images_for_score(classes: int) -> int:
    """From how many images on an Inception Score is given: 50 for each class but one.

    The entropy of p(y), estimated from N images, is too small by about (classes - 1) / 2N where each image is of
    one class for certain, and by less elsewhere. So the score is too small by 1 % at most.

    Source: Miller (1955), "Note on the bias of information estimates"; that the score is biased for any N: Chong
    and Forsyth (2020), "Effectively unbiased FID and Inception Score and where to find them".
    """
    return max(2, 50 * (classes - 1))


def score_bias(n: int, classes: int) -> float:
    """By which share of it an Inception Score of `n` images is too small, to first order of its logarithm.

    1 - exp(-(classes - 1) / 2n): see `images_for_score`.
    """
    return 1 - exp(-(classes - 1) / (2 * n))


def of_score(n: int, classes: int) -> str | None:
    """About the Inception Score of `n` images."""
    least = images_for_score(classes)
    if n < least:
        return f"no Inception Score: of {classes} classes it takes {least} images, and here are {n}"
    if n < ENOUGH_FOR_SCORE:
        return f"with {n} images the Inception Score is biased downwards, by up to {score_bias(n, classes):.1%}"
    return None


def of_distances(n: int, width: int) -> str | None:
    """About distances of `n` images from real ones, in `width` features.

    A covariance of N images has at most rank N - 1, and the Fréchet distance is biased by about 1/N (Bińkowski et
    al. (2018), "Demystifying MMD GANs", section 4); fewer images reach fewer neighbourhoods.
    """
    if n >= max(ENOUGH, width + 1):
        return None
    return (
        f"with {n} images in {width} features the Frechet distance is biased upwards and coverage downwards; "
        "compare only with the column of as many real images"
    )


def of_memorisation(n: int) -> str | None:
    """About the share of `n` images that are nearer to training images.

    Half of Clopper and Pearson's 95 % interval at a half: images that share a nearest neighbour
    move together. With CIFAR-10's test images dealt at random onto two sides, the share of 100 inverted images had a
    standard deviation of 5.0 points in the features of the bundled MobileNetV2 (binomial: 5.0), 6.3 of ResNet-56.
    """
    if n >= ENOUGH:
        return None
    low, high = clopper_pearson(n // 2, 2 * (n // 2)) if n > 1 else (0.0, 1.0)
    return f"with {n} images chance moves the share nearer to training images by {(high - low) / 2:.0%} or more"
