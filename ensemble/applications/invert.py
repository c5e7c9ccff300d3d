"""Invert an ensemble of frozen classifiers: optimise images until all of them agree.

examples:
  python invert.py --recipe quickstart --output results/quickstart
  python invert.py --models resnet20_cifar vgg16_bn_slim_cifar --targets cat dog --images-per-class 8
  python invert.py --nproc 2 --models resnet50@IMAGENET1K_V2 vgg19_bn --targets 0-9 --device cpu
  torchrun --nproc-per-node 4 invert.py --models resnet50 vgg19_bn
  python invert.py --list-models cifar

A model is NAME[:option=value][@WEIGHTS]; WEIGHTS is a tag, a file, `random` or, left out, the default.
"""

from __future__ import annotations

import argparse
import sys
import time

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
)
from ensemble.applications._options import Parser, add_output
from ensemble.machine.environment import is_main_process, is_restarted, launched_rank, launched_ranks

ON_RANKS = True


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to invert")
    add_recipe(what)
    what.add_argument("--trials", type=int, metavar="K", help="make K batches, with seeds SEED, SEED + 1, ...")
    add_output(p, "results/run")
    add_computing(p)
    p.add_argument("--tensorboard", metavar="DIR", help="write losses and grids of images there for TensorBoard")
    look = p.add_argument_group("look, and run nothing")
    add_dry_run(look)
    look.add_argument("--list-models", nargs="?", const="*", metavar="PART", help="models with PART in their names")
    look.add_argument("--list-layers", metavar="MODEL", help="a model's layers in order, with shapes")


def run(options: argparse.Namespace) -> int:
    """One run, or a look at what it would be."""
    began = time.perf_counter()
    if options.list_models is not None or options.list_layers is not None:
        return _look(options)
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.runs.job import job, recipe_for
    from ensemble.runs.trial import Interrupted

    load_entry_points()
    resume = options.resume or is_restarted()
    recipe = recipe_for(
        source_of(options), fields_of(options) | {"trials": options.trials}, options.set, options.output, resume
    )
    nproc = ranks_to_launch(options, recipe.runtime.device)
    prepared = job(
        recipe,
        options.output,
        resume=resume,
        overwrite=options.overwrite,
        command=command_of(sys.argv[1:]),
        tensorboard=options.tensorboard,
    )
    ranks = nproc or launched_ranks()
    if is_dry(options, prepared.plan, prepared.devices, ranks):
        return 0
    if prepared.is_finished:
        if is_main_process():
            print(f"{options.output}: this run is finished; --iterations N goes on with it")
        return 0
    prepared.check(ranks)
    if nproc is not None:
        return launch(nproc)
    try:
        results = prepared.run(began, progress_reporter(launched_rank()))
    except Interrupted as stop:
        return tell_stopped(stop, options)
    if results is not None:
        from ensemble.runs.reports import print_summary

        print_summary(results.summary, options.output)
    return 0


def _look(options: argparse.Namespace) -> int:
    from ensemble.runs.reports import print_layers, print_models

    if options.list_models is not None:
        print_models(options.list_models)
    else:
        print_layers(options.list_layers)
    return 0
