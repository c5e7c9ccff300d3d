"""What commands share that optimise images: their options, and how they start ranks."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ensemble.applications._options import Parser, add_overrides
from ensemble.machine.environment import is_launched, is_main_process, launched_ranks, local_rank, local_ranks

if TYPE_CHECKING:
    import torch

    from ensemble.runs.plan import Plan


def add_recipe(group: argparse._ArgumentGroup) -> None:
    """What is inverted, and how long: a recipe, and fields of it."""
    group.add_argument(
        "--recipe", metavar="FILE", help="a YAML recipe or a shipped one's name; options below win over it"
    )
    group.add_argument("--models", nargs="+", action="extend", metavar="MODEL", help="the teachers")
    group.add_argument(
        "--targets",
        nargs="+",
        action="extend",
        metavar="T",
        help="classes: indices, ranges 0-15, names, random or all",
    )
    group.add_argument("--images-per-class", type=int, metavar="N", help="in a batch")
    group.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="steps in all; stages keep their proportions",
    )
    group.add_argument("--seed", type=int)
    group.add_argument(
        "--verifier",
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="networks that judge the images and are no teachers",
    )
    add_overrides(group, "optimizer.lr=0.2")


def add_computing(p: Parser) -> None:
    """Ranks, devices, precision."""
    how = p.add_argument_group("how to compute")
    how.add_argument("--nproc", type=int, metavar="N", help="check everything, then launch N ranks on this machine")
    device = how.add_mutually_exclusive_group()
    device.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    device.add_argument(
        "--devices",
        nargs="+",
        action="extend",
        metavar="D",
        help="one for each rank of this machine, as cuda:0 cpu",
    )
    how.add_argument("--replicas", type=int, metavar="R", help="make the batches side by side, on ranks / R each")
    how.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16", "tf32", "fp64"))
    how.add_argument("--compile", choices=("auto", "on", "off"))
    how.add_argument(
        "--micro-batch", metavar="N", help="images through a teacher at once; auto halves when out of memory"
    )
    how.add_argument(
        "--reproducible", choices=("placement", "ranks"), help="ranks: the same bits on any number of ranks"
    )


def add_dry_run(group: argparse._ArgumentGroup) -> None:
    """--dry-run and --timed."""
    group.add_argument("--dry-run", action="store_true", help="print formulation, placement and estimates")
    group.add_argument("--timed", action="store_true", help="with --dry-run: time a step too")


def is_dry(options: argparse.Namespace, plan: Plan, devices: Sequence[torch.device], ranks: int) -> bool:
    """Whether it was only to be looked at, which rank 0 has then printed; ValueError for --timed alone."""
    if options.timed and not options.dry_run:
        raise ValueError("--timed goes with --dry-run")
    if options.dry_run and is_main_process():
        from ensemble.runs.reports import print_dry_run

        print_dry_run(plan, devices, ranks, timed=options.timed)
    return bool(options.dry_run)


def source_of(options: argparse.Namespace) -> Any:
    """A recipe's name, plain data for --models, or None to go on with what the folder holds."""
    if options.recipe is not None:
        if not options.models:
            return options.recipe
        from ensemble.runs.recipes import read_recipe

        return read_recipe(options.recipe) | {"teachers": [{"model": name} for name in options.models]}
    if options.models:
        from ensemble.recipe import default_recipe
        from models import model_card

        return default_recipe(options.models, max(model_card(name).input_size for name in options.models))
    if not options.resume:
        raise ValueError("name teachers with --models, or a recipe with --recipe; see invert.py --help")
    return None


def fields_of(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fields that the command line names."""
    targets = options.targets
    return {
        "targets": targets if targets is None or len(targets) > 1 else targets[0],
        "images_per_class": options.images_per_class,
        "iterations": options.iterations,
        "seed": options.seed,
        "verifiers": options.verifier,
        **computing_of(options),
    }


def computing_of(options: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_computing`."""
    return {
        "device": options.devices or options.device,
        "replicas": options.replicas,
        "precision": options.precision,
        "compile": options.compile,
        "reproducible": options.reproducible,
        "micro_batch": int(options.micro_batch) if str(options.micro_batch).isdigit() else options.micro_batch,
    }


def ranks_to_launch(options: argparse.Namespace, device: str | tuple[str, ...]) -> int | None:
    """How many ranks to start here; None: this process is one already, or works alone."""
    if options.nproc is not None and is_launched():
        raise ValueError("--nproc starts ranks itself; under torchrun leave it out")
    if options.nproc is not None and options.nproc < 1:
        raise ValueError(f"--nproc must be at least 1, not {options.nproc}")
    if options.nproc is None and not is_launched() and not isinstance(device, str) and len(device) > 1:
        return len(device)
    nproc: int | None = options.nproc
    return nproc


def launch(ranks: int) -> int:
    """Run the same command as so many ranks; the exit code."""
    from ensemble.machine.launch import launch_ranks

    return launch_ranks([sys.executable, "-m", "ensemble.cli", *without(sys.argv[1:], {"--nproc"})], ranks)


def command_of(words: Sequence[str]) -> str:
    """What was typed, for a summary."""
    text = shlex.join(words)
    if is_launched():
        ranks = launched_ranks() if local_rank() is None else local_ranks()
        return f"torchrun --nproc-per-node {ranks} invert.py {text}"
    return f"python invert.py {text}"


def without(words: Sequence[str], valued: Collection[str], flags: Collection[str] = ()) -> list[str]:
    """The words without these options, `valued` ones with the word that follows them."""
    rest, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in valued:
            skip = True
        elif word not in flags and word.partition("=")[0] not in valued:
            rest.append(word)
    return rest
