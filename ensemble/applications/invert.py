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
import os
import shlex
import sys
import time
from typing import Any

from ensemble.applications._options import Parser, add_output, add_overrides
from ensemble.machine.environment import is_launched, is_main_process, is_restarted, launched_rank, launched_ranks


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to invert")
    what.add_argument(
        "--recipe", metavar="FILE", help="a YAML recipe or a shipped one's name; options below win over it"
    )
    what.add_argument("--models", nargs="+", metavar="MODEL", help="the teachers")
    what.add_argument("--targets", nargs="+", metavar="T", help="classes: indices, ranges 0-15, names, random or all")
    what.add_argument("--images-per-class", type=int, metavar="N")
    what.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="steps in all; stages keep their proportions",
    )
    what.add_argument("--trials", type=int, metavar="K", help="make K batches, with seeds SEED, SEED + 1, ...")
    what.add_argument("--seed", type=int)
    what.add_argument(
        "--verifier", nargs="+", metavar="MODEL", help="networks that judge the images and are no teachers"
    )
    add_overrides(what)
    add_output(p, "results/run")
    how = p.add_argument_group("how to compute")
    how.add_argument("--nproc", type=int, metavar="N", help="check everything, then launch N ranks on this machine")
    device = how.add_mutually_exclusive_group()
    device.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    device.add_argument("--devices", nargs="+", metavar="D", help="one for each rank of this machine, as cuda:0 cpu")
    how.add_argument("--replicas", type=int, metavar="R", help="make the trials side by side, on ranks / R each")
    how.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16", "tf32", "fp64"))
    how.add_argument("--compile", choices=("auto", "on", "off"))
    how.add_argument(
        "--micro-batch", metavar="N", help="images through a teacher at once; auto halves when out of memory"
    )
    how.add_argument(
        "--reproducible", choices=("placement", "ranks"), help="ranks: the same bits on any number of ranks"
    )
    p.add_argument("--tensorboard", metavar="DIR", help="write losses and grids of images there for TensorBoard")
    look = p.add_argument_group("look, and run nothing")
    look.add_argument("--dry-run", action="store_true", help="print formulation, placement and estimates")
    look.add_argument("--timed", action="store_true", help="with --dry-run: time a step too")
    look.add_argument("--list-models", nargs="?", const="*", metavar="PART", help="models with PART in their names")
    look.add_argument("--list-layers", metavar="MODEL", help="a model's layers in order, with shapes")


def run(options: argparse.Namespace) -> int:
    """One run, or a look at what it would be."""
    began = time.perf_counter()
    if options.list_models is not None or options.list_layers is not None:
        return _look(options)
    from ensemble.machine.launch import launch_ranks
    from ensemble.machine.progress import progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.runs.job import job, recipe_for
    from ensemble.runs.trial import Interrupted

    load_entry_points()
    resume = options.resume or is_restarted()
    recipe = recipe_for(_source(options), _fields(options), options.set, options.output, resume)
    nproc = _ranks_to_launch(options, recipe.runtime.device)
    prepared = job(
        recipe,
        options.output,
        resume=resume,
        overwrite=options.overwrite,
        command=_command(),
        tensorboard=options.tensorboard,
    )
    ranks = nproc or launched_ranks()
    if options.dry_run:
        from ensemble.runs.reports import print_dry_run

        if is_main_process():
            print_dry_run(prepared.plan, prepared.devices, ranks, timed=options.timed)
        return 0
    if options.timed:
        raise ValueError("--timed goes with --dry-run")
    if options.resume and prepared.is_finished:
        if is_main_process():
            print(f"{options.output}: this run is finished; --iterations N goes on with it")
        return 0
    prepared.check(ranks)
    if nproc is not None:
        return launch_ranks([sys.executable, "-m", "ensemble.cli", *_without_nproc(sys.argv[1:])], nproc)
    try:
        results = prepared.run(began, progress_reporter(launched_rank()))
    except Interrupted as stop:
        if is_main_process():
            under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
            note = "; nothing is lost by what torchrun reports now, its own way to end" if under_torchrun else ""
            print(f"invert.py: {stop}{note}", file=sys.stderr)
        return 0
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


def _source(options: argparse.Namespace) -> Any:
    """A recipe's name, plain data for --models, or None to go on with what the folder holds."""
    if options.recipe is not None:
        if not options.models:
            return options.recipe
        from ensemble.config.yaml_files import load_yaml
        from ensemble.runs.recipes import recipe_file

        return load_yaml(recipe_file(options.recipe)) | {"teachers": [{"model": name} for name in options.models]}
    if options.models:
        from ensemble.recipe import default_recipe
        from models import model_card

        return default_recipe(options.models, max(model_card(name).input_size for name in options.models))
    if not options.resume:
        raise ValueError("name teachers with --models, or a recipe with --recipe; see invert.py --help")
    return None


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fields that the command line names."""
    targets = options.targets
    return {
        "targets": targets if targets is None or len(targets) > 1 else targets[0],
        "images_per_class": options.images_per_class,
        "iterations": options.iterations,
        "trials": options.trials,
        "seed": options.seed,
        "verifiers": options.verifier,
        "device": options.devices or options.device,
        "replicas": options.replicas,
        "precision": options.precision,
        "compile": options.compile,
        "reproducible": options.reproducible,
        "micro_batch": int(options.micro_batch) if str(options.micro_batch).isdigit() else options.micro_batch,
    }


def _ranks_to_launch(options: argparse.Namespace, device: str | tuple[str, ...]) -> int | None:
    """How many ranks to start here; None: this process is one already, or works alone."""
    if options.nproc is not None and is_launched():
        raise ValueError("--nproc starts ranks itself; under torchrun leave it out")
    if options.nproc is not None and options.nproc < 1:
        raise ValueError(f"--nproc must be at least 1, not {options.nproc}")
    if options.nproc is None and not is_launched() and not isinstance(device, str) and len(device) > 1:
        return len(device)
    nproc: int | None = options.nproc
    return nproc


def _command() -> str:
    """What was typed, for the summary."""
    words = shlex.join(sys.argv[1:])
    if is_launched():
        return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', launched_ranks())} invert.py {words}"
    return f"python invert.py {words}"


def _without_nproc(words: list[str]) -> list[str]:
    rest, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--nproc":
            skip = True
        elif not word.startswith("--nproc="):
            rest.append(word)
    return rest
