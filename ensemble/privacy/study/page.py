"""A study as files: leakage.html, leakage.json, networks.csv and membership.png."""

from __future__ import annotations

import csv
import io
from contextlib import suppress

from ensemble.machine.files import write_bytes, write_json, write_text
from ensemble.privacy.content import Content
from ensemble.privacy.page import Titles, data, page
from ensemble.privacy.study.cells import Cells
from ensemble.privacy.study.conclusions import Concluded
from ensemble.privacy.study.contrasts import Scores
from ensemble.privacy.study.folder import DATA, PAGE, ROC, TABLE
from ensemble.privacy.study.memberships import arms_with_shadows
from ensemble.privacy.study.roc import roc

UNTESTED = (
    "augmentations that are no arm: colour, rotation, RandAugment, mixes by image instead of by batch",
    "whether inversions are nearer to members, by neighbours",
    "larger images, deeper networks, other data, other architectures than the recipe's",
    "inversions with priors, shifts, Fourier coefficients or generators: one frozen setting was used",
    "DP-SGD and other trainings as remedies; attacks with gradients",
)
_SHOWN = ("shown", "indicated")
_SILENT = ("not distinguishable here",)


def write(cells: Cells, found: Concluded, command: str, versions: str, seconds: float, quick: bool) -> None:
    """Writes the first three, and the picture of attacks on membership where the plain arm has enough networks."""
    recipe = cells.bank.recipe
    words = [(f.word, f.question) for f in found.findings]
    shown, silent = ([q for word, q in words if word in those] for those in (_SHOWN, _SILENT))
    rest = [q for word, q in words if word not in (*_SHOWN, *_SILENT)]
    sentences = (
        *(("A quick run, which shows that the study works, and nothing else.",) if quick else ()),
        f"Shown or indicated: {_listed(shown)}.",
        f"Not distinguishable here (the table says what is excluded): {_listed(silent)}.",
        f"Undecided or not tested: {_listed(rest)}.",
    )
    facts = (
        ("networks", f"{sum(1 for _ in cells.bank.teachers())} of {recipe.model}, {recipe.schedule.epochs} epochs"),
        ("images", f"{len(cells.bank.pool)} of {recipe.data.path.rpartition('/')[2]}, each network a random half"),
        ("canaries", f"{int(cells.bank.canaries.sum())} with a wrong label"),
        ("inversions", f"{recipe.inversions.images} images, {recipe.inversions.steps} steps, BN matching alone"),
        ("primary contrast", f"seams in {recipe.sequence[0]} against {recipe.plain}, statistics as trained"),
        ("then, in this order", ", ".join(recipe.sequence[1:]) or "nothing"),
    )
    content = Content(
        model=recipe.model,
        facts=facts,
        sentences=sentences,
        findings=found.findings,
        figures=found.figures,
        tables=found.tables,
        pictures=found.pictures,
        untested=UNTESTED,
        seconds=seconds,
    )
    titles = Titles(
        f"What the statistics of {recipe.model.partition('@')[0]} give away",
        "What was studied",
        f"{DATA} beside this page holds its figures, {TABLE} scores of each network, {ROC} attacks on membership.",
    )
    write_text(cells.folder.path / PAGE, page(content, command, versions, titles))
    write_json(cells.folder.path / DATA, {**data(content, command, versions), "quick": quick})
    write_text(cells.folder.path / TABLE, networks(cells))
    if (plain := arms_with_shadows(cells).get(recipe.plain)) is not None:
        with suppress(ValueError):  # too few images for a curve
            picture = roc(plain.margins, plain.inside, cells.bank.canaries, recipe.plain, recipe.seed)
            write_bytes(cells.folder.path / ROC, picture)


def _listed(questions: list[str]) -> str:
    return "; ".join(f"“{question}”" for question in questions) or "nothing"


def networks(cells: Cells) -> str:
    """arm,seed,detector,score: a line a network and detector, and its accuracy."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", "seed", "detector", "score"])
    scores = Scores(cells)
    for teacher in cells.bank.teachers():
        accuracy = cells.folder.figures(f"bank_{teacher.name}")["accuracy"]["test"]
        writer.writerow([teacher.arm, teacher.seed, "test accuracy", f"{accuracy:.6g}"])
        for detector in scores.detectors():
            if detector.arms is None or teacher.arm in detector.arms:
                short = detector.name.partition(":")[0]
                writer.writerow([teacher.arm, teacher.seed, short, f"{detector.score(teacher):.6g}"])
    return stream.getvalue()
