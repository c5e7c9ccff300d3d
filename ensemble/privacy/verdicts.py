"""Which word a figure earns beside its null and its control; nothing here computes one."""

from __future__ import annotations

from collections.abc import Set

from ensemble.evaluation.estimate import Estimate
from ensemble.privacy.findings import Word

RECOVERED = 0.9
"""The share of planted statistics that must be told, for a candidate to be shown."""


def lower_bound_word(low: float, chance: float, null: Estimate | None, fired: bool | None) -> Word:
    """Of an interval that begins at `low`, beside chance, a null test and a positive control; None: not run.

    A control that did not fire shows a blind test, which says nothing, whatever it finds. Where the null test fires, it
    takes more than the null's interval holds to be more than silence.
    """
    if fired is False:
        return "not tested"
    if low <= (null.high if null and null.low > chance else chance):
        return "not distinguishable here"
    return "shown" if fired and null and null.holds(chance) else "indicated"


def unless_blind(word: Word, fired: bool) -> Word:
    """The word, but where the positive control did not fire no silence: a blind test says nothing by it."""
    return "not tested" if word == "not distinguishable here" and not fired else word


def candidate_word(rivals: int, recovered: float) -> Word:
    """Of the candidate that explains statistics best, beside so many others that explain them as well."""
    if rivals:
        return "undecided"
    return "shown" if recovered >= RECOVERED else "indicated"


def mix_word(low: float, mix: str, alike: Set[str], null: Estimate, fired: bool) -> Word:
    """Of a share of mixed batches; `alike` are the mixes of all candidates that cannot be told from the best.

    A share that does not see batches which were all mixed is blind: it says nothing.
    """
    word = lower_bound_word(low if mix in alike else 0.0, 0.0, null, fired)
    return "indicated" if word == "shown" and alike != {mix} else word


def seams_word(low: float, turned: float, null: Estimate, fired: bool) -> Word:
    """Of a difference of seams; `turned` is that of the control whose images are interpolated alike.

    A score that does not see planted seams is blind: it says nothing.
    """
    return lower_bound_word(low if turned > 0 else 0.0, 0.0, null, fired)


def sequence_word(fallen: bool | None, low: float, kept: bool, alone: bool, fired: bool) -> Word:
    """Of a contrast in a sequence: `fallen` where its test rejected, None where it was not reached.

    `kept`: all controls did as they must; `alone`: no arm without the mix shows the same; `fired`: what was planted
    between networks was found. A score that does not see that is blind: its silence says nothing.
    """
    if fallen is None:
        return "not tested"
    if not fallen:
        return unless_blind("not distinguishable here", fired)
    return "shown" if low > 0.5 and kept and alone else "indicated"
