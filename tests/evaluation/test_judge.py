"""The judge's figures against the measures themselves, and what it says of few images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.evaluation.frechet import frechet_distance
from ensemble.evaluation.judge import Judge, _own_labels
from models import ModelCard, model_card

NAMES = ("red", "green", "blue")
CARD = ModelCard("net", "test", 8, 3, mean=(0.0,) * 3, std=(1.0,) * 3, class_names=NAMES)


class Net(nn.Module):
    """Features: the mean of each quarter, 12; classes: the largest mean channel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)
        nn.init.zeros_(self.fc.bias)
        self.fc.weight.data = torch.eye(3).repeat_interleave(4, 1) * 10

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def features(images: torch.Tensor) -> np.ndarray:
    return images.double().reshape(len(images), 3, 2, 4, 2, 4).mean((3, 5)).flatten(1).numpy()


def data(counts: Sequence[int], seed: int = 0) -> LabelledImages:
    """Noise in which the class's channel is brighter; classes sorted by name, as `load_images` has them."""
    rng = torch.Generator().manual_seed(seed)
    names = sorted(NAMES)
    images, labels = [], []
    for label, (name, n) in enumerate(zip(names, counts, strict=True)):
        noise = torch.randint(0, 200, (n, 3, 8, 8), generator=rng, dtype=torch.uint8)
        noise[:, NAMES.index(name)] += 55
        images.append(noise)
        labels += [label] * n
    return LabelledImages(torch.cat(images), torch.tensor(labels, dtype=torch.long), tuple(names))


def made(n: int, seed: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=rng), torch.arange(n) % 3


def test_without_real_images() -> None:
    images, targets = made(30)
    one = Judge(Net(), CARD)(images, targets)
    assert one.n == 30 and one.near_duplicates == 0 and one.frechet is None and one.train_copies is None
    f = features(images)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(30) for j in range(i) if targets[i] == targets[j]]
    assert one.diversity == pytest.approx(np.mean(pairs), rel=1e-5)
    means = images.mean((2, 3))
    assert one.accuracy.top1 == pytest.approx((means.argmax(1) == targets).double().mean().item())
    assert one.inception_score is None and one.notes == (
        "no Inception Score: of 3 classes it takes 100 images, and here are 30",
    )


def test_the_inception_score_where_there_are_images_enough() -> None:
    images, targets = made(120)
    p = np.exp(40 * images.double().mean((2, 3)).numpy())  # 10 on each of 4 quarters
    p /= p.sum(1, keepdims=True)
    expected = np.exp(np.mean([sum(row * np.log(row / p.mean(0))) for row in p]))
    assert Judge(Net(), CARD)(images, targets).inception_score == pytest.approx(expected, rel=1e-4)


def test_copies_of_training_images_are_found() -> None:
    test, train = data((40, 50, 60)), data((70, 50, 20), seed=1)
    judge = Judge(Net(), CARD, test, train)
    copies = train.images[60:80].float() / 255
    one = judge(copies, torch.tensor([2] * 10 + [1] * 10))  # blue comes first by name, then green
    assert one.accuracy.top1 == 1 and one.train_copies == 1
    assert one.near_duplicates == 0
    fresh = data((100, 100, 100), seed=2)
    images, targets = fresh.images / 255, torch.tensor([2, 1, 0])[fresh.labels]
    other = judge(images, targets)
    assert other.train_copies == 0 and other.closer_to_train is not None
    assert 0.35 < other.closer_to_train < 0.65  # for as many of a class are compared on both sides
    assert other.frechet == pytest.approx(frechet_distance(features(images), features(test.images / 255)), rel=1e-4)


def test_copies_are_nearer_to_training_images() -> None:
    test, train = data((50, 50, 50)), data((50, 50, 50), seed=1)
    copies, targets = train.images[::5].float() / 255, torch.tensor([2, 1, 0])[train.labels[::5]]
    assert Judge(Net(), CARD, test, train)(copies, targets).closer_to_train == 1


def test_real_training_images_are_no_copies_of_themselves() -> None:
    test, train = data((50, 50, 50)), data((80, 80, 80), seed=1)
    judge = Judge(Net(), CARD, test, train)
    scale = judge.scale(train, 90)
    assert scale.n == 90 and scale.train_copies == 0
    assert scale.closer_to_train is not None and 0.3 < scale.closer_to_train < 0.7
    again = judge.scale(data((80, 80, 80), seed=1), 90)  # equal, but not the judge's own: here they are copies
    assert again.train_copies == 1 and again.frechet == scale.frechet


def test_the_scale_has_as_many_of_each_class() -> None:
    """And says nothing of copies where no other training image is left."""
    test, train = data((50, 50, 50)), data((8, 8, 8), seed=1)
    judge = Judge(Net(), CARD, test, train)
    few = judge.scale(train, torch.tensor([0] * 12 + [2]))
    assert few.n == 9 and [share != share for share in few.accuracy.per_class] == [False, True, False]
    every = judge.scale(train, 24)
    assert every.train_copies is None and every.closer_to_train is None
    assert "no training image of their classes is left" in " ".join(every.notes)


def test_only_real_images_of_the_classes_are_read() -> None:
    seen: dict[str, int] = {}

    def watch(name: str, parts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        seen[name] = sum(map(len, parts))
        return parts

    test, train = data((300, 10, 20)), data((7, 30, 400), seed=1)
    judge = Judge(Net(), CARD, test, train, classes=torch.tensor([2]), watch=watch)
    blue = torch.full((9,), 2)
    limited = judge(made(9)[0], blue, "mine")
    assert seen == {"300 real test images": 300, "7 real training images, to compare distances": 7, "mine": 9}
    whole = Judge(Net(), CARD, test, train)(made(9)[0], blue)
    assert limited.frechet == whole.frechet and limited.train_copies == whole.train_copies


@pytest.mark.parametrize(
    ("n", "missing"), [(1, ("Frechet", "precision", "diversity")), (3, ("precision", "diversity"))]
)
def test_too_few_images_for_a_figure(n: int, missing: tuple[str, ...]) -> None:
    one = Judge(Net(), CARD, data((20, 20, 20)), data((20, 20, 20), seed=1))(*made(n))
    for name in ("Frechet", "precision", "diversity"):
        assert any(note.startswith(f"no {name}") for note in one.notes) == (name in missing)
    assert (one.frechet is None) == (one.kernel is None) == ("Frechet" in missing)
    assert one.precision is None and one.recall is None and one.diversity is None
    assert one.density is not None and one.coverage is not None


def test_too_few_real_images_for_a_figure() -> None:
    one = Judge(Net(), CARD, data((1, 2, 2)), data((0, 0, 5), seed=1))(*made(9))
    assert one.density is None and any("they take 6 real images, here are 5" in note for note in one.notes)
    assert one.precision is not None and one.frechet is not None
    nothing = Judge(Net(), CARD, data((0, 9, 0)), data((0, 0, 5), seed=1))(made(9)[0], torch.ones(9, dtype=torch.long))
    assert nothing.closer_to_train is None and nothing.train_copies is None
    assert any(note.startswith("nothing about copies") for note in nothing.notes)


def test_features_that_are_zero_have_no_diversity() -> None:
    one = Judge(Net(), CARD)(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    assert one.diversity is None and one.near_duplicates == 1
    assert any("all features are zero" in note for note in one.notes)


def test_classes_without_real_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no real image is of 1 of the 1 classes that are judged \(red\)"):
        Judge(Net(), CARD, data((5, 5, 0)), classes=torch.tensor([0]))


def test_parts_are_halved_where_memory_runs_out() -> None:
    class Large(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > limit:
                raise torch.OutOfMemoryError("no memory")
            return super().forward(x)

    images, targets = made(30)
    limit = 5
    assert Judge(Large(), CARD)(images, targets) == Judge(Net(), CARD)(images, targets)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        Judge(Large(), CARD)(images, targets)


def test_folders_called_by_wordnet_numbers_are_imagenets_classes() -> None:
    """Two of a thousand: in their own order they would be classes 0 and 1."""
    card = model_card("efficientnet_lite0")
    data = LabelledImages(
        torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 0, 1]), ("n02102040", "n03888257")
    )
    assert _own_labels(card, data).tolist() == [701, 217, 701]
    mixed = LabelledImages(data.images, data.labels, ("n02102040", "parachute"))
    assert _own_labels(card, mixed).tolist() == [701, 217, 701]
    with pytest.raises(ValueError, match="no class 'n99999999'"):
        _own_labels(card, LabelledImages(data.images, data.labels, ("n02102040", "n99999999")))
