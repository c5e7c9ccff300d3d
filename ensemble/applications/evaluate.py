"""Judge finished images by networks that were no teachers, alone or beside real images.

Without --data: how many are read as their target (accuracy, with Clopper and Pearson's 95 % interval), the mean
confidence, the diversity within a class (1 - cosine of the judge's features, mean over pairs), near-duplicates, and
where there are images enough for it the Inception Score; and where the judge has BatchNorm layers, how far the images
are from their statistics, in units of what as many real images have: 1 is reality, less a closer match than that.

With --data, a folder or tar archive with SPLIT/CLASS/FILE, also beside the real test images of the same classes:
Frechet and kernel distance, precision, recall, density and coverage; and whether training images were copied: the
share of images nearer to training than to test images (about half where none are), and the share with a
near-duplicate among the training images. A column of as many real training images gives the scale.

An image has a near-duplicate when another of its run, or its mirror image, correlates with it by more than 0.9:
max over j of max(corr(t_i, t_j), corr(mirror(t_i), t_j)) > 0.9, where t is the image averaged to 16 x 16 pixels.

examples:
  python invert.py evaluate results/quickstart --judge mobilenetv2_slim_cifar
  python invert.py evaluate results/a results/b --judge mobilenetv2_slim_cifar --data cifar10.tar.xz --json figures.json
  python invert.py evaluate results/quickstart --judge resnet56_cifar@resnet56.th --judge mobilenetv2_slim_cifar
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.applications._options import Parser, add_device, check_file

if TYPE_CHECKING:
    import torch

    from ensemble.data.labelled import LabelledImages
    from ensemble.evaluation.judge import Watch
    from ensemble.evaluation.verdict import Verdict
    from ensemble.machine.progress import ProgressReporter


def arguments(p: Parser) -> None:
    """The options."""
    p.add_argument("results", nargs="+", metavar="DIR", help="results folders of finished runs, or datasets")
    p.add_argument(
        "--judge",
        action="append",
        required=True,
        metavar="MODEL",
        help="a network that was no teacher; may be repeated",
    )
    p.add_argument("--data", metavar="PATH", help="real images: a folder or archive with SPLIT/CLASS/FILE")
    p.add_argument("--train-split", metavar="SPLIT", help="real images that set the scale (default: train)")
    p.add_argument("--test-split", metavar="SPLIT", help="real images to compare with (default: test)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    p.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    add_device(p)


def run(options: argparse.Namespace) -> int:
    """A table for each judge; what can be refused is refused before anything is computed."""
    import torch

    from ensemble.evaluation.judge import Judge
    from ensemble.evaluation.verdict import verdict
    from ensemble.machine.files import user_path, write_json
    from ensemble.machine.hardware import choose_device, set_up
    from ensemble.machine.progress import FallingSilent, progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.runs.finished import FinishedRun
    from models import check_reads, create_model, model_card

    load_entry_points()
    file = options.json and user_path(options.json)
    if file:
        check_file("--json", file, options.overwrite)
    if options.data is None and (options.train_split or options.test_split):
        raise ValueError("--train-split and --test-split name parts of --data; give it, too")
    splits = [name.rstrip("/") for name in (options.test_split or "test", options.train_split or "train")]
    if options.data is not None and splits[0] == splits[1]:
        raise ValueError(f"--test-split: it is {splits[0]}, as --train-split; name other real images to compare with")
    device = choose_device(options.device or "auto")
    runs = [FinishedRun.read(folder) for folder in dict.fromkeys(options.results)]
    names = list(dict.fromkeys(options.judge))
    for name in names:
        for made in runs:
            made.check(model_card(name))
    judges = [create_model(name) for name in names]
    for name, (net, card) in zip(names, judges, strict=True):
        check_reads(f"judge {name}", net, card)
    classes = torch.cat([made.targets for made in runs]).unique()
    set_up("fp32", device)
    display = FallingSilent(progress_reporter())
    real = _real_images(options.data, splits, display) if options.data is not None else None
    said = {}
    try:
        for name, (net, card) in zip(names, judges, strict=True):
            test, train = real(card.input_size) if real else (None, None)
            judge = Judge(net.to(device), card, test, train, classes=classes, watch=_watch(display, name))
            said[name] = verdict(name, judge, runs, train)
            net.cpu()
    finally:  # where a judge fails, what those before it said
        display.close()
        _print(said, compared=options.data is not None)
    if file:
        write_json(file, said)
    return 0


def _real_images(path: str, splits: Sequence[str], display: ProgressReporter) -> Callable[[int], list[LabelledImages]]:
    """Loads the splits at a size; judges of one size in a row share them."""
    from ensemble.data.labelled import load_images

    @lru_cache(maxsize=1)
    def load(size: int) -> list[LabelledImages]:
        display.message(f"loading {' and '.join(splits)} images of {path} at {size} x {size}")
        return [load_images(path, split, size) for split in splits]

    return load


def _watch(display: ProgressReporter, judge: str) -> Watch:
    """Shows what the judge reads, and how many parts of it are read."""

    def parts_of(name: str, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        display.message(f"{judge} reads {name}")
        if len(parts) == 1:
            yield from parts
            return
        display.start(len(parts))
        for i, part in enumerate(parts):
            yield part
            display.step(i)
        display.close()

    return parts_of


def _print(said: Mapping[str, Verdict], compared: bool) -> None:
    """A table a judge, with what is to be said of it below."""
    from rich.console import Console

    from ensemble.evaluation.table import table, width

    terminal = Console()
    needed = max((width(len(one.sets)) for one in said.values()), default=0)
    console = Console(width=max(terminal.width if terminal.is_terminal else 200, needed))
    for name, one in said.items():
        console.print(f"\njudge: {name}", markup=False, highlight=False, soft_wrap=True)
        console.print(table(one.sets, compared))
        for line in [f"warning: {text}" for text in one.warnings] + [f"note: {text}" for text in one.notes]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
