"""What an audit found, question by question, and the words in which it may be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ensemble.evaluation.estimate import Estimate

SCHEMA_VERSION = 1

Word = Literal[
    "shown", "indicated", "not distinguishable here", "undecided", "not tested", "consistent", "not consistent"
]
"""What a finding may say; WORDS says what each means."""

WORDS: dict[Word, str] = {
    "shown": "the interval excludes the null, the null test stayed silent and the positive control fired",
    "indicated": "the interval excludes the null, and one of the two was not run or not clear",
    "not distinguishable here": (
        "the interval holds the null, or no more than a null test that fires as well, or something else explains the "
        "data better; the reading says what would have been seen, or why"
    ),
    "undecided": "nothing that was tried explains the data, or several things do, or another question comes first",
    "consistent": "what a card or a recipe says explains the data",
    "not consistent": "something else explains them better",
    "not tested": "what it takes was not given, the test is blind here, or it was not reached",
}

FIGURES = {
    "augmentation": "the candidate's name, or `undecided` where several explain as well, or `preprocessing`",
    "cutmix_share": "estimated share of batches with CutMix",
    "mixup_share": "estimated share of batches with mixup",
    "cutout_share": "estimated share of batches with cutout",
    "claim": "`consistent`, `not consistent` or `undecided`",
    "seam_difference": "mean seam score of inversions less that of inversions of re-estimated plain statistics",
    "accuracy_gap": "accuracy on members less that on non-members",
    "loss_auc": "AUC of the loss attack",
    "tpr_1pct": "true positive rate at 1 % false positives, of the strongest attack that was run",
    "tail_tnr": "share of non-members below the 1st percentile of the members' margins",
    "tracing_auc": "AUC of the tracing statistic of released BatchNorm means",
    "lira_auc": "AUC of LiRA",
    "rmia_auc": "AUC of RMIA",
    "blind_auc": "AUC of a classifier that never saw the network",
    "closer_to_members": "share of inversions that are nearer to members than to as many non-members",
}
"""What `--fail-if` may name, and `figures` in audit.json holds; None where it was not measured."""


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("accuracy_gap", "cutmix_share", "mixup_share", "cutout_share"), (-1.0, 1.0)),
    **dict.fromkeys(("loss_auc", "tracing_auc", "lira_auc", "rmia_auc", "blind_auc"), (0.0, 1.0)),
    **dict.fromkeys(("tpr_1pct", "tail_tnr", "closer_to_members"), (0.0, 1.0)),
}
"""What a figure may be compared with; others with any number. An estimated share may lie outside, no limit for one."""


def words_of(figure: str) -> tuple[str, ...]:
    """What a figure of words may say; empty for a number."""
    if figure == "claim":
        return ("consistent", "not consistent", "undecided")
    if figure == "augmentation":
        from ensemble.privacy.candidates import augmentations  # takes torch, which a command's --help does without

        return ("undecided", "preprocessing", *(candidate.name for candidate in augmentations()))
    return ()


_MEMBERS = ("accuracy_gap", "loss_auc", "tpr_1pct", "tail_tnr", "blind_auc", "closer_to_members")
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("augmentation", "cutmix_share", "mixup_share", "cutout_share", "seam_difference"), ("reference",)),
    "claim": ("reference", "claimed"),
    **dict.fromkeys(_MEMBERS, ("members",)),
    "tracing_auc": ("members", "reference"),
    **dict.fromkeys(("lira_auc", "rmia_auc"), ("members", "references")),
}
"""The options without which a figure is not measured."""
OF_STATISTICS = (
    *("augmentation", "cutmix_share", "mixup_share", "cutout_share", "claim", "seam_difference", "tracing_auc"),
    "closer_to_members",
)
"""What is not measured of a network that keeps no BatchNorm statistics."""

FIXED = (
    "Attacks give lower bounds: a stronger one may find more.",
    "Knowing an augmentation is not knowing a person.",
    "Inverted images are typical of what statistics hold, not copies, unless the neighbour test says so.",
    "Membership figures are averages; outliers are more exposed.",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A row of the page. Texts are whole; `figure` is what they are about."""

    question: str
    word: Word
    evidence: str = ""
    figure: Estimate | float | None = None
    null: str = ""
    """The same test where nothing is to be found."""
    control: str = ""
    """The same test where something was planted."""
    access: str = ""
    """What an attacker needs."""
    reading: str = ""

    @property
    def value(self) -> float | None:
        """The figure alone."""
        return self.figure.value if isinstance(self.figure, Estimate) else self.figure

    @property
    def measured(self) -> float | None:
        """The figure alone; None where the test was blind, or not reached, so that its silence says nothing."""
        return None if self.word == "not tested" else self.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """That of 95 %, if the figure has one."""
        return self.figure.interval if isinstance(self.figure, Estimate) and self.figure.bounded else None


@dataclass(frozen=True)
class Table:
    """Figures behind a finding."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Part:
    """What one detector adds to an audit."""

    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, float | str | None] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Columns of scores.csv, by attack: (set, scores)."""
