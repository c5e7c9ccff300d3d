"""Search over fields of a recipe for the images that are best by a metric.

A space is a YAML file that names fields and their values:

  objectives[0].weight: {low: 0.1, high: 30, log: true}
  stages[0].iterations: {low: 30, high: 300, int: true}
  optimizer.schedule: [cosine, constant]

Point 0 is the recipe as it is. Metrics: `student`, the accuracy of a small network trained on a point's images, on
held-out generated images as the judge labels them; `agreement`, the share of images that the judge reads as their
target; `inception`, the Inception Score; `distance`, the Frechet distance from real images. Their fields can be set, as
--metric '{kind: student, steps: 600}'. At the end the best point and the recipe as it is run on new seeds.

examples:
  python invert.py search --recipe quickstart --space quickstart --trials 20 \\
      --judge mobilenetv2_slim_cifar --output results/search
  python invert.py search --recipe quickstart --space space.yaml --trials 50 --judge mobilenetv2_slim_cifar \\
      --storage postgresql://me@host/studies --output results/search     (the same on further machines)
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ensemble.applications._endings import ended
from ensemble.applications._options import Parser, add_device, add_output, add_overrides
from ensemble.machine.files import user_path
from ensemble.search import PRUNERS, SAMPLERS


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to search")
    what.add_argument("--recipe", required=True, metavar="FILE", help="a YAML recipe or a shipped one's name")
    what.add_argument(
        "--space", required=True, metavar="FILE", help="a YAML file: fields and their values; or a shipped one's name"
    )
    what.add_argument("--trials", required=True, type=int, metavar="N", help="points in all, of all workers")
    what.add_argument("--metric", default="student", metavar="NAME", help="what is made best (default: %(default)s)")
    what.add_argument("--judge", required=True, metavar="MODEL", help="a network that is no teacher")
    what.add_argument("--data", metavar="PATH", help="real images, for the metric distance")
    what.add_argument("--seeds", type=int, default=2, metavar="K", help="runs of each point (default: %(default)s)")
    what.add_argument(
        "--confirm",
        type=int,
        default=3,
        metavar="K",
        help="new seeds for the best point; 0: none (default: %(default)s)",
    )
    add_overrides(what, "optimizer.lr=0.2")
    how = p.add_argument_group("how to search")
    how.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="default: %(default)s")
    how.add_argument("--pruner", choices=PRUNERS, default="median", help="default: %(default)s")
    how.add_argument("--storage", metavar="URL", help="a database that workers share (default: DIR/study.db)")
    add_device(how)
    add_output(p)


def run(options: argparse.Namespace) -> int:
    """A search, or a part of one; what can be refused is refused before the folder is touched."""
    from ensemble.search.checks import check_counts, check_installed, check_settings, digests_of

    check_installed()
    check_counts(options.trials, options.seeds, options.confirm)
    if options.storage == "":
        raise ValueError("--storage is empty; name a database, as sqlite:///FILE, or leave it out")
    if options.storage and options.overwrite:
        raise ValueError(
            "--overwrite replaces a search whose study is in DIR; one elsewhere is yours to remove, by "
            "optuna delete-study; or give other settings, which are another study"
        )
    from ensemble.machine.errors import OUT_OF_MEMORY
    from ensemble.machine.hardware import choose_devices
    from ensemble.machine.progress import FallingSilent, progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.search.folder import SearchFolder
    from ensemble.search.run import search

    load_entry_points()
    settings, tried = _settings(options)
    check_settings(settings, tried, options.trials)
    folder, files = SearchFolder(user_path(options.output)), digests_of(settings, tried)

    def act() -> Mapping[str, Any]:
        return search(
            settings,
            folder,
            choose_devices(settings.recipe.runtime.device)[0],
            files=files,
            points=options.trials,
            confirmations=options.confirm,
            storage=options.storage,
            resume=options.resume or options.storage is not None,
            overwrite=options.overwrite,
            progress=FallingSilent(progress_reporter()),
        )

    summary = ended(act, options, "point", OUT_OF_MEMORY)
    if isinstance(summary, int):
        return summary
    _print(summary, folder.path)
    return 0


def _settings(options: argparse.Namespace) -> tuple[Any, Any]:
    """What is searched, and recipes of the space that were tried."""
    from ensemble.runs.job import job
    from ensemble.runs.recipes import assembled, read_recipe
    from ensemble.search.settings import Settings, parse_metric
    from ensemble.search.space import check_device, check_space, read_space

    data = read_recipe(options.recipe)
    recipe = assembled(data, {"device": options.device}, options.set)
    check_device(recipe)
    job(recipe, None).check(ranks=1)
    file = space_file(options.space)
    space = read_space(file)
    settings = Settings(
        recipe,
        space,
        parse_metric(options.metric),
        options.judge,
        options.data,
        options.seeds,
        options.sampler,
        options.pruner,
    )
    return settings, check_space(space, recipe, file)


def space_file(name: str) -> Path:
    """The file, or that of the shipped space search/NAME; ValueError where there is neither."""
    from ensemble.runs.recipes import recipe_file

    path = user_path(name)
    if path.is_file() or path.suffix:
        return path
    with suppress(ValueError):
        return recipe_file(f"search/{name.removeprefix('search/')}")
    known = ", ".join(sorted(file.stem for file in recipe_file("search/quickstart").parent.glob("*.yaml")))
    raise ValueError(f"--space: {name!r} is neither a file nor a shipped space; shipped are {known}")


def _print(summary: Mapping[str, Any], folder: Path) -> None:
    """What came out."""
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    print(f"{folder}: {summary['points']} points ({states}) by {summary['metric']}")
    print("\n".join(summary["said"]))
    if summary["best"] is not None:
        print(f"python invert.py --recipe {shlex.quote(str(folder / 'best.yaml'))} --output DIR")
