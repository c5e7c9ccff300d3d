"""--fail-if: its grammar, and when it is met."""

from __future__ import annotations

import pytest

from ensemble.privacy.conditions import parse_condition
from ensemble.privacy.findings import FIGURES, RANGES, words_of


@pytest.mark.parametrize(
    ("text", "figures", "met"),
    [
        ("tpr_1pct>0.05", {"tpr_1pct": 0.06}, True),
        ("tpr_1pct > 0.05", {"tpr_1pct": 0.05}, False),
        ("tpr_1pct>=0.05", {"tpr_1pct": 0.05}, True),
        ("cutmix_share<=-1", {"cutmix_share": 0.1}, False),
        ("claim!=consistent", {"claim": "undecided"}, True),
        ("claim==not consistent", {"claim": "consistent"}, False),
        ("augmentation!=no crops", {"augmentation": "no crops, CutMix"}, True),
        ("augmentation==crops with borders of the mean", {"augmentation": "no crops"}, False),
        ("loss_auc>0.9", {"loss_auc": None}, True),
    ],
)
def test_when_a_condition_is_met(text: str, figures: dict[str, float | str | None], met: bool) -> None:
    assert bool(parse_condition(text, FIGURES).met(figures)) == met


def test_what_was_not_measured_fails_and_says_so() -> None:
    assert "was not measured" in parse_condition("loss_auc>0.9", FIGURES).met({})


def test_every_number_but_a_difference_of_scores_has_a_range() -> None:
    numbers = {name for name in FIGURES if not words_of(name)}
    assert numbers - {"seam_difference"} == RANGES.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss_auc", "expected FIGURE OPERATOR VALUE"),
        ("los_auc>0.5", "did you mean 'loss_auc'"),
        ("nothing_like_it>0.5", "there are augmentation"),
        ("claim>consistent", "== and != alone"),
        ("claim==consistnt", "claim is one of consistent; not consistent; undecided"),
        ("augmentation==CutMix", "augmentation is one of undecided; preprocessing; no crops; no crops, CutMix; "),
        ("augmentation!=1", "augmentation is one of"),
        ("loss_auc==shown", "loss_auc is a number"),
        ("loss_auc>nan", "loss_auc is a number"),
        ("accuracy_gap>5", "accuracy_gap lies between -1 and 1; 5 % is 0.05"),
        ("loss_auc>1.2", "loss_auc lies between 0 and 1"),
        ("cutmix_share>20", "cutmix_share lies between -1 and 1"),
        ("tail_tnr>inf", "tail_tnr lies between 0 and 1"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_condition(text, FIGURES)
