"""Audit what a network and its statistics give away of its training: one page, each figure beside a null and a control.

Written to DIR are audit.html (self-contained), audit.json and scores.csv. What is given decides what is asked: with
reference images (like the training images, but not these), how training images were normalised, cropped and mixed,
and whether that is what --claimed says; with members and non-members, whether the network knows its members; with
--references, by networks of the same recipe, too. What was not asked is listed.

DATA is a folder or archive with SPLIT/CLASS/FILE or CLASS/FILE, as DATA or DATA:SPLIT. Without a split, `test` is the
reference and the non-members, `train` the members, or where there are no splits, all; the reference needs no classes
either. Reference and non-members of one split are halves of it.

What each of the networks by --references says is kept in DIR/references: an audit that was stopped goes on by the same
command.

--fail-if FIGURE OPERATOR VALUE, which may be repeated, ends with exit code 1 where it is met or its figure was not
measured: 'cutmix_share>0.2', 'claim!=consistent', 'tpr_1pct>0.05'. Figures: {figures}.

examples:
  python invert.py audit --model resnet20_cifar --reference cifar10.tar.xz --output results/audit
  python invert.py audit --model MODEL@FILE --reference DATA --claimed RECIPE --fail-if 'claim!=consistent' --output DIR
  python invert.py audit --model MODEL --reference DATA --members DATA:train --non-members DATA:test --output DIR
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.applications._options import Parser
from ensemble.machine.files import user_path

if TYPE_CHECKING:
    from ensemble.data.labelled import LabelledImages
    from ensemble.data.tree import Layout
    from ensemble.training.recipe import TrainingRecipe

_AT_MOST = 20000
_STRICTEST: tuple[Layout, ...] = ("splits", "classes", "pictures")


def arguments(p: Parser) -> None:
    """The options."""
    from ensemble.privacy.findings import FIGURES

    p.description = (p.description or "").replace("{figures}", ", ".join(FIGURES))
    p.add_argument("--model", required=True, metavar="MODEL", help="a network, NAME[:option=value][@WEIGHTS]")
    p.add_argument("--reference", metavar="DATA", help="images like the training images, which were not among them")
    p.add_argument("--members", metavar="DATA", help="images that were trained on")
    p.add_argument("--non-members", metavar="DATA", help="images of the same kind that were not")
    p.add_argument("--claimed", metavar="RECIPE", help="a training recipe that the statistics are compared with")
    p.add_argument("--references", type=int, default=0, metavar="K", help="train K networks for LiRA and RMIA")
    p.add_argument("--training", metavar="RECIPE", help="how these are trained")
    p.add_argument("--quick", action="store_true", help="fewer images and steps, for a first look")
    p.add_argument("--fail-if", action="append", default=[], metavar="CONDITION", help="exit code 1 where it is met")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default: %(default)s)")
    p.add_argument("--output", required=True, metavar="DIR", help="where the page goes")
    p.add_argument("--overwrite", action="store_true", help="replace an earlier audit there")


def run(options: argparse.Namespace) -> int:
    """What can be refused is refused before anything is computed."""
    from ensemble.privacy.conditions import parse_condition
    from ensemble.privacy.findings import FIGURES, NEEDED
    from ensemble.privacy.folder import AuditFolder

    conditions = [parse_condition(text, FIGURES) for text in options.fail_if]
    for condition in conditions:
        if lacking := [f"--{name}" for name in NEEDED[condition.figure] if not getattr(options, name)]:
            raise ValueError(
                f"--fail-if {condition}: {condition.figure} is measured with {' and '.join(lacking)}; give it, too"
            )
        if options.quick and condition.figure == "tpr_1pct":
            raise ValueError(f"--fail-if {condition}: it takes 1,000 non-members, and --quick reads 500; leave it out")
    if options.claimed and options.reference is None:
        raise ValueError("--claimed is compared with statistics of images; give --reference DATA")
    if (options.members is None) != (options.non_members is None):
        raise ValueError("--members and --non-members are compared with each other; give both")
    if bool(options.references) != bool(options.training):
        raise ValueError("--references K trains networks by --training RECIPE; give both")
    if options.references and (options.members is None or options.references < 2):
        raise ValueError("--references: at least two, and --members and --non-members to ask about")
    folder = AuditFolder(user_path(options.output))
    folder.check(overwrite=options.overwrite)

    import torch

    from ensemble.machine.hardware import set_up
    from ensemble.machine.progress import FallingSilent, progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.privacy.audit import Given, audit
    from models import model_card

    load_entry_points()
    card = model_card(options.model)
    claimed, training = (_recipe(name) for name in (options.claimed, options.training))
    set_up("fp32", torch.device("cpu"))
    display = FallingSilent(progress_reporter())
    command = shlex.join(["python", "invert.py", "audit", *sys.argv[2:]]) if len(sys.argv) > 2 else "audit from Python"
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}, seed {options.seed}"
    try:
        with folder.held():
            folder.check(overwrite=options.overwrite)  # again: another may have ended there before this held it
            given = Given(
                options.model,
                claimed=claimed,
                training=training,
                references=options.references,
                quick=options.quick,
                seed=options.seed,
                watched=tuple(condition.figure for condition in conditions),
                kept=folder.references,
                **_images(options, card.input_size),
            )
            made = audit(given, display.message)
            folder.write(made, command, versions)
    finally:
        display.close()
    for sentence in made.sentences:
        print(sentence)
    if not made.findings:
        print(f"Not asked: {'; '.join(made.untested)}")
    print(f"{folder.page}: {len(made.findings)} questions, {made.seconds:.0f} s")
    reasons = [why for condition in conditions if (why := condition.met(made.figures))]
    if reasons:
        print(f"invert.py: --fail-if: {'; '.join(reasons)}", file=sys.stderr)
    return 1 if reasons else 0


def _recipe(name: str | None) -> TrainingRecipe | None:
    from ensemble.runs.recipes import TRAINING, read_recipe
    from ensemble.training.recipe import parse_training_recipe

    return None if name is None else parse_training_recipe(read_recipe(name, TRAINING, "training"))


def _source(text: str, split: str, layout: Layout) -> tuple[Path, str, Layout]:
    """Path and split of DATA or DATA:SPLIT, and what may be left out, which is nothing where the split is named."""
    path, colon, named = text.rpartition(":")
    is_named = colon and named and not user_path(text).exists()
    text, split, layout = (path, named, "splits") if is_named else (text, split, layout)
    return user_path(text).resolve(), split, layout


def _same(a: LabelledImages | None, b: LabelledImages | None) -> bool:
    """Whether two sets are one: what is named alike is loaded once, and a tree without splits is one set to all."""
    import torch

    return a is not None and b is not None and (a is b or torch.equal(a.images, b.images))


def _said(data: LabelledImages, path: Path) -> str:
    """How many of what."""
    count = f"{len(data):,}" if len(data) == data.there else f"{len(data):,} of {data.there:,} drawn"
    return ", ".join(filter(None, (f"{count}: {path.name}", data.split)))


def _images(options: argparse.Namespace, size: int) -> dict[str, Any]:
    """What `Given` takes of the images; of one split, reference and non-members are halves."""
    from ensemble.data.labelled import load_images
    from ensemble.privacy.audit import LEAST_REFERENCE

    named: dict[str, tuple[str | None, str, Layout]] = {
        "reference": (options.reference, "test", "pictures"),
        "members": (options.members, "train", "classes"),
        "others": (options.non_members, "test", "classes"),
    }
    where = {key: _source(text, split, layout) for key, (text, split, layout) in named.items() if text is not None}
    layouts: dict[Path, Layout] = {}  # what all who name the path ask of it: read in two ways, halves would overlap
    for path, _, layout in where.values():
        layouts[path] = min(layout, layouts.get(path, layout), key=_STRICTEST.index)
    places = {key: (path, split) for key, (path, split, _) in where.items()}
    loaded = {
        place: load_images(*place, size, at_most=_AT_MOST, layout=layouts[place[0]])
        for place in dict.fromkeys(places.values())
    }
    found = {key: loaded[place] for key, place in places.items()}
    if any(_same(found.get("members"), found.get(key)) for key in ("reference", "others")):
        raise ValueError("--members are the same images as --reference or --non-members; give others")
    if _same(found.get("others"), found.get("reference")):
        both = found["others"]
        if len(both) < 2 * LEAST_REFERENCE:
            raise ValueError(
                f"--reference, --non-members: the {len(both)} images of one split are halved between them; give at "
                f"least {2 * LEAST_REFERENCE}, or a split for each"
            )
        for key, half in (("reference", slice(0, None, 2)), ("others", slice(1, None, 2))):
            found[key] = both.subset(half)
    words = {"reference": "reference images", "members": "members", "others": "non-members"}
    sources = [(words[key], _said(found[key], path)) for key, (path, _) in places.items()]
    return {**found, "sources": tuple(sources)}
