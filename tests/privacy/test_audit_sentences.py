"""The four sentences of an audit: each names its questions, and what is shown or indicated is said, not only asked."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ensemble.evaluation.estimate import Estimate
from ensemble.privacy.audit import _sentences
from ensemble.privacy.findings import WORDS, Finding
from ensemble.privacy.members import _loss, _shadowed, closer_to_members

NULL, LEAK, NONE = Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.65, 0.75), Estimate(0.51, 0.45, 0.57)


def test_answers_of_memberships_say_yes_where_there_is_a_leak() -> None:
    near = torch.eye(8).repeat(5, 1)
    for leak, none in (
        (_loss(LEAK, NULL, None, "", 0.1), _loss(NONE, NULL, None, "", 0.1)),
        (_shadowed("lira", LEAK, NULL, None, 4, ""), _shadowed("lira", NONE, NULL, None, 4, "")),
        (closer_to_members(near, near, 0 * near), closer_to_members(near, near, near)),
    ):
        assert leak.word == "indicated" and re.match(r"Yes: \d\.\d\d, where chance is 0\.5\. ", leak.reading)
        assert none.word == "not distinguishable here" and " would have been seen by this " in none.reading


def test_each_question_stands_in_one_sentence_with_its_answer() -> None:
    answers = {word: f"It is {word}. More of it." for word in WORDS}
    findings = [Finding(question=f"Is it {word}?", word=word, reading=answers[word]) for word in WORDS]
    shown, indicated, silent, open_ = _sentences(findings)
    assert shown == "Shown: “Is it shown?” It is shown."
    assert (
        "“Is it indicated?” It is indicated. Not as it is said of the network: “Is it not consistent?” It is"
        in indicated
    )
    assert "“Is it not distinguishable here?”; “Is it consistent?”." in silent and "More" not in silent
    assert "“Is it undecided?”; “Is it not tested?”" in open_
    assert _sentences([])[:2] == (
        "Shown: nothing of what was asked.",
        "Indicated, without a complete set of controls: nothing.",
    )
    blind = Finding(question="Lines?", word="not tested", reading="The control did not fire: the test is blind here.")
    assert "“Lines?” (blind here);" in _sentences([blind])[3]


def test_a_leak_that_is_no_more_than_its_null_says_so() -> None:
    loud = Estimate(0.7, 0.66, 0.74)
    finding = _loss(LEAK, loud, None, "", 0.1)
    assert finding.word == "not distinguishable here" and finding.reading.startswith("No more than its null")
    finding = _loss(Estimate(0.9, 0.88, 0.92), loud, None, "", 0.1)
    assert finding.word == "indicated" and finding.reading.startswith("Yes, but its null fires as well: 0.90")


def test_the_documentation_has_the_same_words() -> None:
    page = (Path(__file__).parents[2] / "docs/privacy.md").read_text(encoding="utf-8")
    assert all(f"- **{word}**: {meaning}." in page for word, meaning in WORDS.items())
