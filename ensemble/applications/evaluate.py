"""Judge finished images by networks that were no teachers, alone or beside real images.

Without --data: how many are read as their target (accuracy, with Wilson's 95 % interval), the mean confidence, the
diversity within a class (1 - cosine of the judge's features, mean over pairs), near-duplicates, and where there are
images enough for it the Inception Score.

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
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ensemble.applications._options import Parser, add_device

if TYPE_CHECKING:
    import torch

    from ensemble.data.labelled import LabelledImages
    from ensemble.evaluation.judge import Judge, Judgement, Watch
    from ensemble.machine.progress import ProgressReporter
    from models import ModelCard


def arguments(p: Parser) -> None:
    """The options."""
    p.add_argument("results", nargs="+", metavar="DIR", help="results folders of finished runs")
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
    add_device(p)


def run(options: argparse.Namespace) -> int:
    """A table for each judge; what can be refused is refused before anything is computed."""
    import torch

    from ensemble.evaluation.judge import Judge
    from ensemble.machine.files import write_json
    from ensemble.machine.hardware import choose_device, set_up
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from models import create_model, model_card

    load_entry_points()
    _lenient(sys.stdout)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("evaluate is one process; start it without torchrun")
    file = options.json and options.json.expanduser()
    if file:
        _check_writable(file)
    if options.data is None and (options.train_split or options.test_split):
        raise ValueError("--train-split and --test-split name parts of --data; give it, too")
    device = choose_device(options.device or "auto")
    runs = [_Run.read(folder) for folder in dict.fromkeys(options.results)]
    names = list(dict.fromkeys(options.judge))
    for name in names:
        for made in runs:
            made.check(model_card(name))
    judges = [create_model(name) for name in names]
    classes = torch.cat([made.targets for made in runs]).unique()
    set_up("fp32", device)
    display = _Display(progress_reporter())
    splits = options.test_split or "test", options.train_split or "train"
    real = _real_images(options.data, splits, display) if options.data is not None else None
    judged = {}
    try:
        for name, (net, card) in zip(names, judges, strict=True):
            test, train = real(card.input_size) if real else (None, None)
            judge = Judge(net.to(device), card, test, train, classes=classes, watch=display.watch(name))
            judged[name] = _judged(name, judge, runs, train)
            net.cpu()
    finally:
        display.close()
    if file:
        write_json(file, judged)
    _print(judged, compared=options.data is not None)
    return 0


@dataclass(frozen=True)
class _Run:
    """What a results folder holds, checked."""

    name: str
    images: torch.Tensor
    targets: torch.Tensor
    class_names: tuple[str, ...]
    teachers: tuple[str, ...]
    """As its recipe names them."""

    @classmethod
    def read(cls, name: str) -> _Run:
        """ValueError, with the folder's name, where a run did not end there, or its files are damaged."""
        from ensemble.runs.folder import ResultsFolder

        folder = ResultsFolder(Path(name).expanduser())
        images, targets = folder.read_images()
        if not folder.finished:
            raise ValueError(
                f"{name} holds no finished run; go on with it, by --output {name} --resume, and judge it then"
            )
        recipe, summary = folder.read_recipe(), folder.read_summary()
        if not _are_images(images, targets):
            raise ValueError(
                f"{name}: its images are damaged, they are no RGB in [0, 1] with a target each; make them again"
            )
        try:
            teachers = tuple(str(teacher["model"]) for teacher in recipe["teachers"])
            class_names = tuple(map(str, summary.get("class_names", ())))
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{name}: its recipe or summary is damaged; make the images again") from None
        return cls(name, images, targets, class_names, teachers)

    def check(self, judge: ModelCard) -> None:
        """ValueError where the targets count other classes than the judge's, as far as that is known here."""
        from models import model_card

        try:
            first = model_card(self.teachers[0])
        except (ValueError, IndexError):  # a module in memory, or a network of somebody else's
            same = not (self.class_names and judge.class_names) or self.class_names == judge.class_names
            whose = "the run's own classes"
        else:
            same, whose = first.shares_classes(judge), first.name
        if not same:
            raise ValueError(f"{self.name} has targets of {whose}, and {judge.name} has other classes")
        if int(self.targets.max()) >= judge.num_classes:
            raise ValueError(
                f"{self.name} has targets up to {self.targets.max()}, and {judge.name} has {judge.num_classes} classes"
            )

    def taught_by(self, judge: str) -> bool:
        """Whether the judge was among the teachers, with the same weights."""
        return any(_weights(teacher) & _weights(judge) for teacher in self.teachers)


def _are_images(images: torch.Tensor, targets: torch.Tensor) -> bool:
    import torch

    if images.ndim != 4 or images.shape[1] != 3 or not images.numel() or images.dtype != torch.float32:
        return False
    if targets.shape != images.shape[:1] or targets.dtype != torch.int64 or int(targets.min()) < 0:
        return False
    return bool((images >= -1e-4).all() and (images <= 1 + 1e-4).all())  # NaN is neither


def _weights(name: str) -> set[object]:
    """What tells a network's weights from others': how they are named, and their digest where it is known."""
    from models import model_card, parse_spec

    try:
        spec = parse_spec(name)
        card = model_card(spec)
    except ValueError:  # a module in memory, or a network of somebody else's
        return set()
    tag = card.default_weights if spec.weights == "default" else spec.weights
    if spec.path is None or tag in card.weights:
        record = card.weights.get(tag or "")
        return {(spec.name, *sorted(spec.options.items()), tag)} | (
            {record.sha256} if record and record.sha256 else set()
        )
    if not spec.path.is_file():
        return set()
    with spec.path.open("rb") as file:
        return {hashlib.file_digest(file, "sha256").hexdigest()}


def _real_images(path: str, splits: Sequence[str], display: _Display) -> Callable[[int], list[LabelledImages]]:
    """Loads the splits at a size; judges of one size in a row share them."""
    from ensemble.data.labelled import load_images

    @lru_cache(maxsize=1)
    def load(size: int) -> list[LabelledImages]:
        display.message(f"loading {' and '.join(splits)} images of {path} at {size} x {size}")
        return [load_images(path, split, size) for split in splits]

    return load


@dataclass(frozen=True)
class _Judged:
    """What one judge says."""

    sets: dict[str, Judgement]
    """By the folder's name, and real images by how many they are."""
    warnings: list[str]
    """About the judge and the real images."""

    @property
    def notes(self) -> list[str]:
        """What is to be said of the sets, each once."""
        return list(dict.fromkeys(note for one in self.sets.values() for note in one.notes))


def _judged(name: str, judge: Judge, runs: Sequence[_Run], train: LabelledImages | None) -> _Judged:
    """Each run's judgement, and where there are real images that of as many training images, as the scale."""
    sets = {made.name: judge(made.images, made.targets, made.name) for made in runs}
    warnings = [
        f"{name} was a teacher of {made.name}, whose images were made for it; take a network that was none"
        for made in runs
        if made.taught_by(name)
    ]
    if train is not None:
        scales, missing = _scales(judge, train, runs)
        sets |= scales
        warnings += missing
    return _Judged(sets, warnings)


def _scales(judge: Judge, train: LabelledImages, runs: Sequence[_Run]) -> tuple[dict[str, Judgement], list[str]]:
    """Real training images, as many and of the same classes as each run's, and a line where there are not so many."""
    sets: dict[str, Judgement] = {}
    warnings = []
    seen = set()
    for made in runs:
        n, classes = len(made.targets), made.targets.unique()
        if (n, *classes.tolist()) in seen:
            continue
        seen.add((n, *classes.tolist()))
        scale = judge.scale(train, n, classes=classes)
        name = f"{scale.n} real training images"
        sets[f"{name}, classes of {made.name}" if name in sets else name] = scale
        if scale.n < n:
            warnings.append(
                f"of the classes of {made.name} there are {scale.n} training images; its {n} have no fair scale"
            )
    return sets, warnings


class _Display:
    """Progress that is shown as far as that is possible."""

    def __init__(self, reporter: ProgressReporter) -> None:
        self._reporter = reporter

    def message(self, text: str) -> None:
        with suppress(OSError):
            self._reporter.message(text)

    def watch(self, judge: str) -> Watch:
        """Shows how many parts the judge has read."""

        def parts_of(name: str, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
            self.message(f"{judge} reads {name}")
            if len(parts) == 1:
                yield from parts
                return
            with suppress(OSError):
                self._reporter.start(len(parts))
            for i, part in enumerate(parts):
                yield part
                with suppress(OSError):
                    self._reporter.step(i)
            self.close()

        return parts_of

    def close(self) -> None:
        with suppress(OSError):
            self._reporter.close()


def _print(judged: Mapping[str, _Judged], compared: bool) -> None:
    """A table a judge, with what is to be said of them below; nothing where nobody reads any more."""
    from rich.console import Console

    from ensemble.evaluation.table import table, width

    terminal = Console()
    needed = max(width(len(one.sets)) for one in judged.values())
    columns = max(terminal.width if terminal.is_terminal else 200, needed)
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal.is_terminal, width=columns)
    for name, one in judged.items():
        console.print(f"\njudge: {name}", markup=False, highlight=False, soft_wrap=True)
        console.print(table(one.sets, compared))
        for line in [f"warning: {said}" for said in one.warnings] + [f"note: {said}" for said in one.notes]:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        print(text.getvalue(), end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends


def _lenient(stream: TextIO) -> None:
    """What the stream's encoding cannot say becomes `?`."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _check_writable(file: Path) -> None:
    """ValueError where `file` cannot be written."""
    if file.is_dir():
        raise ValueError(f"--json: {file} is a folder; give a file")
    there = next(folder for folder in file.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is a file"
        raise ValueError(f"--json: {file} cannot be written, {there} {why}; give another file")
