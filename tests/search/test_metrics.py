"""The metrics of a search, against what plain torch and NumPy say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ensemble.config.mistakes import ConfigError
from ensemble.data.labelled import LabelledImages
from ensemble.machine.rng import generator
from ensemble.recipe import parse_recipe
from ensemble.search.confirmation import compare
from ensemble.search.images import HELD_OUT_IMAGES, confirming, made, make_held_out, seed_at
from ensemble.search.metric import Kit
from ensemble.search.ranges import Choice, Range
from ensemble.search.settings import parse_metric
from models import create_model, load_plugin

load_plugin(Path(__file__).parents[1] / "applications" / "tiny.py")
JUDGE = "tiny_plain@random"
CPU = torch.device("cpu")
RECIPE = {
    "teachers": [{"model": "tiny_a@random"}],
    "stages": [{"iterations": 1}],
    "best_every": 0,
    "runtime": {"device": "cpu", "precision": "fp32"},
}


def kit(held_out: Any = None, data: str | None = None) -> Kit:
    return Kit(JUDGE, parse_recipe(RECIPE), data, CPU, lambda: held_out)


def logits(images: torch.Tensor) -> torch.Tensor:
    net, card = create_model(JUDGE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        return net.eval()((images - mean) / std)


def coloured(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images, each with a target: its brightest channel."""
    rng = generator(seed, "coloured")
    targets = torch.arange(n) % 3
    images = 0.4 * torch.rand(n, 3, 8, 8, generator=rng)
    images[torch.arange(n), targets] += 0.5
    return images, targets


def test_agreement_is_the_share_that_the_judge_reads_as_targets() -> None:
    images = torch.rand(40, 3, 8, 8, generator=generator(0, "images"))
    reads = logits(images).argmax(1)
    targets = reads.clone()
    targets[:10] = (targets[:10] + 1) % 3
    assert parse_metric("agreement").measure(kit())(images, targets, 0) == 0.75


def test_inception_is_the_score_by_the_judge() -> None:
    images = 3 * torch.rand(100, 3, 8, 8, generator=generator(0, "images")).pow(3) / 3
    p = logits(images).double().softmax(1).numpy()
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    found = parse_metric("inception").measure(kit())(images, torch.zeros(100, dtype=torch.long), 0)
    assert found == pytest.approx(expected) and not parse_metric("inception").minimised


def test_few_images_for_an_inception_score_are_told() -> None:
    images = torch.rand(20, 3, 8, 8, generator=generator(0, "images"))
    score = parse_metric("inception").measure(kit())
    with pytest.warns(UserWarning, match=r"20 images a point the score is too small by about 5%") as told:
        for seed in range(3):
            score(images, torch.zeros(20, dtype=torch.long), seed)
    assert len(told) == 1


def test_distance_is_that_of_gaussians_in_the_judges_features(tmp_path: Path) -> None:
    real, labels = coloured(30, 1)
    pixels = (real * 255).round().to(torch.uint8)
    for i, name in enumerate(("circle", "square", "star")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for n, image in enumerate(pixels[labels == i]):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "train" / name / f"{n}.png")
    images, targets = coloured(24, 2)
    net, card = create_model(JUDGE)
    taken: list[torch.Tensor] = []
    net.fc.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].double()))
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        for some in (images, pixels.float() / 255):
            net.eval()((some - mean) / std)
    (a, b), covariances = taken, [torch.cov(some.T) for some in taken]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(c.trace() for c in covariances) - 2 * roots
    metric = parse_metric("distance")
    measure = metric.measure(kit(data=str(tmp_path)))
    assert metric.minimised and metric.needs_data
    assert measure(images, targets, 0) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ValueError, match="at least two images"):
        measure(images[:1], targets[:1], 0)


def test_a_student_learns_what_the_images_say_of_the_held_out_labels() -> None:
    held, labels = coloured(60, 3)
    held_out = LabelledImages((held * 255).to(torch.uint8), labels, ("circle", "square", "star"))
    measure = parse_metric("{kind: student, model: tiny_b@random, steps: 40, batch_size: 12}").measure(kit(held_out))
    images, targets = coloured(36, 4)
    right = measure(images, targets, 0)
    assert right > 0.9
    assert measure(images, (targets + 1) % 3, 0) < 0.1  # it learned the targets
    assert measure(images, targets, 0) == right
    with pytest.raises(ValueError, match="at least two images"):
        measure(images[:1], targets[:1], 0)


def test_held_out_images_are_the_recipes_from_other_seeds_by_the_judges_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert HELD_OUT_IMAGES == 500
    monkeypatch.setattr("ensemble.search.images.HELD_OUT_IMAGES", 5)
    held_out = make_held_out(kit())
    recipe = parse_recipe({**RECIPE, "trials": 2})
    expected, _ = made(recipe, seed_at(recipe, 2000))
    assert len(held_out) == 6 and torch.equal(held_out.images, (expected * 255).round().to(torch.uint8))
    assert torch.equal(held_out.labels, logits(expected).argmax(1))


def test_seeds_of_search_confirmation_and_held_out_images_are_apart() -> None:
    recipe = parse_recipe({**RECIPE, "trials": 1000, "seed": 3})
    places = [*range(1000), *map(confirming, range(5)), 2000]
    seeds = [range(seed_at(recipe, place), seed_at(recipe, place) + recipe.trials) for place in places]
    assert all(a.stop <= b.start for a, b in pairwise(seeds)) and seeds[0].start == 3


def test_better_is_said_where_the_interval_leaves_out_zero() -> None:
    assert compare([2.0, 3.0, 4.0], [1.0, 2.1, 2.9], False).verdict == "better"  # 1, 0.9, 1.1: 1 ± 0.248
    said = compare([2.0, 3.0, 4.0], [1.0, 2.1, 2.9], True)
    assert said.verdict == "worse" and said.difference == "1.000 ± 0.248"
    assert said.best_mean == "3.000 ± 2.484"  # 4.303 / sqrt(3)
    assert compare([2.0, 3.0], [1.0, 3.0], False).verdict == "no difference shown"
    assert compare([1.0, 1.0], [1.0, 1.0], False).verdict == "no difference shown"
    assert compare([1.0] * 3, [0.99] * 3, False).verdict == "no difference shown"  # equal ones have no spread


def test_values_of_a_range() -> None:
    assert Range(0.0, 0.3, step=0.1).grid == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert Range(1.0, 4.0, int=True).grid == [1, 2, 3, 4] and Range(0.0, 1.0).grid is None
    for steps in (Range(0.1, 0.3, step=0.1), Range(0.05, 0.35, step=0.1)):  # 0.1 + 2 * 0.1 is above 0.3
        assert all(steps.encoded(value) is not None for value in steps.grid or [None])
    assert Range(1.0, 4.0, int=True).probes == [1, 4] and Range(0.1, 0.5).probes == [0.1, 0.5]
    assert [Range(0.0, 1.0, step=0.25).encoded(value) for value in (0.5, 0.3, 2, True, "a")] == [0.5, *[None] * 4]
    assert Choice((True, 1, None)).encoded(1) == "1" and Choice((True, None)).encoded(1) is None
    assert Choice((0.3, 1, [0, 0.9])).encoded(1.0) == "1"  # a recipe holds 1.0 where a space, and it, may say 1
    assert Choice((0.3, 1, [0, 0.9])).encoded([0.0, 0.9]) == "[0, 0.9]"
    with pytest.raises(ConfigError, match="low"):
        Range(1.0, 1.0)
