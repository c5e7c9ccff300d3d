"""Make a dataset: inverted images, batch after batch, with every teacher's logits of each.

Every finished batch is written at once; Ctrl-C, a kill or a full disk loses the batch in flight, and --resume goes on.
ensemble.GeneratedImages reads the folder in Python; --export writes it as a tree of pictures.

examples:
  python invert.py dataset --recipe quickstart --images 5000 --output results/five_thousand
  python invert.py dataset --recipe quickstart --images 5000 --output results/five_thousand --resume
  python invert.py dataset --models resnet20_cifar --images 400 --balance cat=3,dog=1 --output results/pets
  python invert.py dataset --output results/pets --export results/pets_as_pictures
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import Any

from ensemble.applications._endings import tell_stopped
from ensemble.applications._inverting import (
    add_computing,
    add_dry_run,
    add_recipe,
    command_of,
    fields_of,
    is_dry,
    launch,
    ranks_to_launch,
    source_of,
    without,
)
from ensemble.applications._options import Parser, add_output, check_alone
from ensemble.machine.environment import is_main_process, is_restarted, launched_rank, launched_ranks

ON_RANKS = True


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to make")
    what.add_argument("--images", type=int, metavar="N", help="how many; a finished dataset goes on to more")
    what.add_argument(
        "--balance", metavar="C=S,...", help="classes and their shares, as cat=3,dog=1 or 0-4=1; instead of --targets"
    )
    add_recipe(what)
    add_output(p, "results/dataset")
    add_computing(p)
    add_dry_run(p.add_argument_group("look, and make nothing"))
    other = p.add_argument_group("use a finished one")
    other.add_argument("--export", metavar="FOLDER", help="write the dataset in DIR as FOLDER/train/CLASS/NUMBER.png")


def run(options: argparse.Namespace) -> int:
    """Makes a dataset, or what is missing of it; or exports one."""
    began = time.perf_counter()
    if options.export is not None:
        return _export(options)
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.runs.dataset_job import dataset_job
    from ensemble.runs.trial import Interrupted

    load_entry_points()
    prepared = dataset_job(
        _source(options),
        _fields(options),
        options.set,
        options.output,
        options.images,
        resume=options.resume or is_restarted(),
        overwrite=options.overwrite,
        command=command_of(without(sys.argv[1:], {"--output"}, {"--resume", "--overwrite"})),
    )
    nproc = ranks_to_launch(options, prepared.plan.recipe.runtime.device)
    ranks = nproc or launched_ranks()
    if is_dry(options, prepared.plan, prepared.devices, ranks):
        return 0
    prepared.check(ranks)
    if prepared.is_finished:
        prepared.folder.check_shards(prepared.folder.rows())
        if is_main_process():
            print(f"{options.output}: this dataset of {prepared.wanted.images} images is finished; --images N goes on")
        return 0
    if nproc is not None:
        return launch(nproc)
    try:
        made = prepared.run(began, progress_reporter(launched_rank()))
    except Interrupted as stop:
        return tell_stopped(stop, options)
    if made is not None:
        from ensemble.runs.reports import print_dataset

        print_dataset(made.manifest, made.cost, options.output)
    return 0


def _source(options: argparse.Namespace) -> Any:
    """What `source_of` says; of `--models` alone, with a batch whose BatchNorm statistics say something."""
    source = source_of(options)
    if options.models and options.recipe is None and options.images_per_class is None:
        from models import model_card

        size = max(model_card(name).input_size for name in options.models)
        source["image"] = {**source.get("image", {}), "batch_size": 100 if size <= 64 else 20}
    return source


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    fields = fields_of(options)
    if options.balance is not None:
        if options.targets is not None:
            raise ValueError("--balance says which classes there are; leave --targets out")
        fields["targets"] = _shares(options.balance)
    return fields


def _shares(text: str) -> dict[str, float]:
    """The shares in `cat=3,dog=1`; names may hold commas and equals signs."""
    found: dict[str, float] = {}
    end = 0
    for match in re.finditer(r"\s*(.+?)\s*=\s*([\d.]+(?:[eE][+-]?\d+)?)\s*(?:,|$)", text):
        name, share = match[1], match[2]
        if match.start() != end or name in found:
            break
        end = match.end()
        try:
            found[name] = float(share)
        except ValueError:
            break
    else:
        if found and end == len(text):
            return found
    raise ValueError(f"balance: {text!r} is not class=share,class=share, each class once; write it as cat=3,dog=1")


def _export(options: argparse.Namespace) -> int:
    """Writes the pictures of the finished dataset in --output; nothing is made, so nothing else may be asked for."""
    from ensemble.data.generated import GeneratedImages
    from ensemble.machine.progress import FallingSilent, progress_reporter

    check_alone("dataset --export")
    parser = Parser("", "")
    arguments(parser)
    nothing = vars(parser.parse_args([]))
    kept = {"output", "export", "plugin"}
    given = [
        key for key, value in vars(options).items() if key not in kept and key in nothing and value != nothing[key]
    ]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(f"--export writes the finished dataset in --output, and makes none; leave {option} out")
    made = GeneratedImages(options.output)
    display = FallingSilent(progress_reporter())
    try:
        made.export(options.export, display)
    finally:
        display.close()
    print(f"{len(made)} pictures: {options.export}/train")
    return 0
