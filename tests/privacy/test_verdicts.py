"""Which word is said of what: every case by hand, and that detectors ask for it with what they found."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ensemble.evaluation.estimate import Estimate
from ensemble.privacy import augmentation, pictures
from ensemble.privacy.study import conclusions
from ensemble.privacy.study.contrasts import Swap
from ensemble.privacy.verdicts import candidate_word, lower_bound_word, mix_word, seams_word, sequence_word

SHOWN, INDICATED, SILENT, UNTESTED = "shown", "indicated", "not distinguishable here", "not tested"
BOTH = list(product((False, True), repeat=2))


QUIET, LOUD, BELOW = Estimate(0.5, 0.4, 0.6), Estimate(0.6, 0.55, 0.65), Estimate(0.4, 0.35, 0.45)


@pytest.mark.parametrize("fired", [True, False, None])
@pytest.mark.parametrize("null", [QUIET, LOUD, BELOW, None])
def test_an_interval_beside_its_null_and_its_control(null: Estimate | None, fired: bool | None) -> None:
    """A blind control, or a null that fires as well, is not the same as one that was not run."""
    found = [lower_bound_word(low, 0.5, null, fired) for low in (0.4, 0.5, 0.51, 0.7)]
    above = SHOWN if null is QUIET and fired else INDICATED
    seen = [SILENT, SILENT, SILENT if null is LOUD else above, above]
    assert found == ([UNTESTED] * 4 if fired is False else seen)


def test_the_best_candidate() -> None:
    assert [candidate_word(*given) for given in ((0, 0.9), (0, 0.89), (1, 1.0))] == [SHOWN, INDICATED, "undecided"]


@pytest.mark.parametrize(("silent", "fired"), BOTH)
def test_a_share_of_mixed_batches(silent: bool, fired: bool) -> None:
    null = Estimate(0.1, -0.1 if silent else 0.05, 0.2)
    shown, indicated = (word if silent else SILENT for word in (SHOWN, INDICATED))
    assert mix_word(0.1, "cutmix", {"cutmix"}, null, fired) == (shown if fired else UNTESTED)
    assert mix_word(0.1, "cutmix", {"cutmix", "mixup"}, null, fired) == (indicated if fired else UNTESTED)
    for low, alike in ((0.1, {"none"}), (0.0, {"cutmix"})):
        assert mix_word(low, "cutmix", alike, null, fired) == (SILENT if fired else UNTESTED)


@pytest.mark.parametrize("silent", [False, True])
def test_a_difference_of_seams(silent: bool) -> None:
    null = Estimate(0.1, -0.1 if silent else 0.05, 0.2)
    assert seams_word(0.1, 0.1, null, fired=True) == (SHOWN if silent else SILENT)
    assert seams_word(0.3, 0.1, null, fired=True) == (SHOWN if silent else INDICATED)
    assert seams_word(0.3, 0.1, null, fired=False) == UNTESTED
    for low, turned in ((0.1, 0.0), (0.0, 0.1), (-0.1, -0.1)):
        assert seams_word(low, turned, null, fired=True) == SILENT
        assert seams_word(low, turned, null, fired=False) == UNTESTED


@pytest.mark.parametrize(("kept", "alone"), BOTH)
def test_a_contrast_in_a_sequence(kept: bool, alone: bool) -> None:
    for fired in (False, True):
        assert sequence_word(None, 0.9, kept, alone, fired) == UNTESTED
        assert sequence_word(False, 0.9, kept, alone, fired) == (SILENT if fired else UNTESTED)
        assert sequence_word(True, 0.6, kept, alone, fired) == (SHOWN if kept and alone else INDICATED)
        assert sequence_word(True, 0.5, kept, alone, fired) == INDICATED


@pytest.mark.parametrize(
    ("fallen", "planted", "real", "word"),
    [
        (True, 0.95, True, SHOWN),
        (True, 0.94, True, INDICATED),
        (True, 0.95, False, INDICATED),
        (False, 0.95, True, SILENT),
        (False, 0.95, False, SILENT),
        (False, 0.94, True, UNTESTED),
        (None, 0.95, True, UNTESTED),
    ],
)
def test_the_primary_contrast(fallen: bool | None, planted: float, real: bool, word: str) -> None:
    """What was planted between networks must be found, for silence to say anything."""
    value = Estimate(0.7, 0.6, 0.85)
    scores: Any = SimpleNamespace(
        seams=None,
        turned=None,
        auroc=lambda detector, arm: value,
        without_mixes=lambda: [],
        teachers=lambda arm: [arm] * 12,
        cells=SimpleNamespace(bank=SimpleNamespace(recipe=SimpleNamespace(plain="plain"))),
    )
    checks: Any = [SimpleNamespace(detector="I1", fires=True, kept=real, value=value)]
    around = conclusions._Around(checks, "[0.2, 0.8]", planted, 0.5)
    finding = conclusions._sequence(scores, "cutmix", 0, 0.04 if fallen else 0.06, fallen, around)
    assert finding.word == word
    assert ("blind here" in finding.reading) == (fallen is False and planted < 0.95)


@pytest.mark.parametrize(("planted", "word"), [(0.95, SILENT), (0.94, UNTESTED)])
def test_a_blind_score_says_nothing_by_its_silence_beside_the_sequence_either(planted: float, word: str) -> None:
    value = Estimate(0.5, 0.4, 0.6)
    scores: Any = SimpleNamespace(
        seams=None,
        auroc=lambda detector, arm: value,
        without_mixes=lambda: ["padded"],
        teachers=lambda arm: [arm] * 12,
    )
    around = conclusions._Around([], "[0.2, 0.8]", planted, 0.5)
    swap = Swap({cell: (0.1, 0.2, 0.3) for cell in product(("plain", "mixed"), ("plain", "cutmix"))}, {})
    swapped = conclusions._swapped(swap, {"swap, statistics": 1.0, "swap, weights": 1.0}, around)
    assert [finding.word for finding in (*swapped, *conclusions._specific(scores, around))] == [word] * 3


@pytest.mark.parametrize(
    ("own", "turned", "blank", "planted", "word"),
    [
        (0.5, 0.2, 0.0, 0.4, SHOWN),
        (0.5, -0.2, 0.0, 0.4, SILENT),
        (0.5, 0.2, 0.3, 0.4, SILENT),
        (0.9, 0.2, 0.3, 0.4, INDICATED),
        (0.5, 0.2, 0.0, 0.0, UNTESTED),
        (0.5, 0.2, 0.3, 0.0, UNTESTED),
        (0.0, 0.2, 0.0, 0.0, UNTESTED),
    ],
)
def test_seams_of_inversions(
    own: float, turned: float, blank: float, planted: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences of 0.1 around these; the images stand for themselves."""
    images = {name: torch.full((2, 3, 8, 8), k / 10) for k, name in enumerate(("own", "null", "other", "planted"))}
    means = {0.0: own, 0.2: blank, 0.3: planted}

    def difference(a: torch.Tensor, b: torch.Tensor) -> Estimate:
        assert float(b[0, 0, 0, 0]) == pytest.approx(0.1)
        value = means[round(float(a[0, 0, 0, 0]), 1)]
        return Estimate(value, value - 0.1, value + 0.1)

    monkeypatch.setattr(pictures, "_difference", difference)
    monkeypatch.setattr(pictures, "turned_control", lambda x: torch.tensor([turned if float(x.mean()) < 0.05 else 0.0]))
    finding = pictures._seams(*images.values(), Estimate(0.9, 0.8, 1.0))
    assert (finding.word, finding.value) == (word, own)
    assert ("as well" in finding.reading.partition(". ")[0]) == (blank > 0.1 and planted > 0.1)
    assert finding.measured == (None if word == UNTESTED else own)  # no --fail-if passes by a blind test's silence


@pytest.mark.parametrize(
    ("low", "null", "control", "alike", "word"),
    [
        (0.1, (-0.1, 0.1), (0.9, 1.1), ("a",), SHOWN),
        (0.1, (0.2, 0.3), (0.9, 1.1), ("a",), SILENT),
        (0.4, (0.2, 0.3), (0.9, 1.1), ("a",), INDICATED),
        (0.1, (-0.1, 0.1), (-0.1, 1.1), ("a",), UNTESTED),
        (0.1, (-0.1, 0.1), (0.9, 1.1), ("a", "b"), INDICATED),
        (0.1, (-0.1, 0.1), (0.9, 1.1), ("b",), SILENT),
        (0.0, (-0.1, 0.1), (0.9, 1.1), ("a",), SILENT),
        (0.0, (-0.1, 0.1), (-0.1, 1.1), ("a",), UNTESTED),
        (-3.0, (-0.1, 0.1), (0.9, 1.1), ("a",), UNTESTED),
    ],
)
def test_a_mix(
    low: float,
    null: tuple[float, float],
    control: tuple[float, float],
    alike: tuple[str, ...],
    word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: Any = {"a": SimpleNamespace(mix="cutmix"), "b": SimpleNamespace(mix="mixup")}
    monkeypatch.setattr(augmentation, "unmixed", lambda *_: torch.linspace(*null, 100))
    monkeypatch.setattr(augmentation, "all_mixed", lambda *_: torch.linspace(*control, 100))
    said: Any = SimpleNamespace(alike=alike, wider=1.0)
    finding = augmentation._mix("CutMix?", Estimate(0.5, low, 0.9), *[None] * 2, said, known, "cutmix", 0)  # type: ignore[arg-type]
    assert finding.word == word and ("blind here" in finding.reading) == (word == UNTESTED)
    assert ("did not fire" in finding.reading) == (word == UNTESTED and control[0] <= 0)
