"""Invert an ensemble of frozen classifiers: optimise images until all of them agree."""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from ensemble.machine.errors import MachineFailure, is_out_of_memory  # noqa: E402

_OTHERS_TELL = 10.0
"""Seconds a rank leaves to the one that tells of a failure which both met."""

_EPILOG = """examples:
  python invert.py --recipe recipes/quickstart.yaml --output results/quickstart
  python invert.py --models resnet20_cifar vgg16_bn_slim_cifar --targets cat dog --images-per-class 8
  python invert.py --nproc 2 --models resnet50@IMAGENET1K_V2 vgg19_bn --targets 0-9 --device cpu
  torchrun --nproc-per-node 4 invert.py --models resnet50 vgg19_bn
  python invert.py --list-models '*cifar*'

A model is NAME[:option=value][@WEIGHTS]; WEIGHTS is a tag, a file, `random` or, left out, the default.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see invert.py --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(
        prog="invert.py",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = p.add_argument_group("what to invert")
    what.add_argument("--recipe", metavar="FILE", help="a YAML recipe; the options below win over it")
    what.add_argument("--models", nargs="+", metavar="MODEL", help="the teachers")
    what.add_argument("--targets", nargs="+", metavar="T", help="classes: indices, ranges 0-15, names, random or all")
    what.add_argument("--images-per-class", type=int, metavar="N")
    what.add_argument(
        "--iterations", type=int, metavar="N", help="steps in all; the recipe's stages keep their proportions"
    )
    what.add_argument("--trials", type=int, metavar="K", help="make K batches, with seeds SEED, SEED + 1, ...")
    what.add_argument("--seed", type=int)
    what.add_argument(
        "--verifier", nargs="+", metavar="MODEL", help="networks that judge the images and are no teachers"
    )
    what.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="any field, e.g. image.batch_size=40"
    )
    where = p.add_argument_group("results")
    where.add_argument("--output", metavar="DIR", default="results/run", help="results folder (default: %(default)s)")
    earlier = where.add_mutually_exclusive_group()
    earlier.add_argument("--overwrite", action="store_true", help="replace an earlier run's results in DIR")
    earlier.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR, or begin")
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
    how.add_argument("--dry-run", action="store_true", help="print formulation, placement and estimates; run nothing")
    look = p.add_argument_group("models")
    look.add_argument("--list-models", nargs="?", const="*", metavar="PATTERN", help="print the known models and leave")
    look.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file that registers models"
    )
    return p


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done (or stopped and saved), 1 a failure of the machine, 2 a mistake of the user.

    Failures are told in one line each, by one rank; what is neither keeps its traceback.
    """
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        _tell(error)
        return 2
    except (MachineFailure, OSError) as error:
        _tell(error)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _tell(MachineFailure("out of memory; pass --micro-batch auto, or make fewer images at once"), error)
        return 1
    except KeyboardInterrupt as error:
        _tell(MachineFailure("interrupted; nothing was saved since the last checkpoint"), error)
        return 130


def _tell(error: BaseException, cause: BaseException | None = None) -> None:
    """One line on stderr: from the rank at fault if only one is, from the one to `report`, or from rank 0.

    The launcher ends all ranks as soon as one has failed. So a rank with nothing to tell does not leave before the
    one that tells; if it is still there after a while, it met the mistake alone, before the ranks met, or on a
    machine without rank 0, and tells.
    """
    rank = getattr(cause or error, "failing_rank", None)
    here = int(os.environ.get("RANK", "0"))
    if not getattr(error, "report", rank is not None or here == 0):
        time.sleep(_OTHERS_TELL)
        if hasattr(error, "report") or getattr(error, "collective", False):
            return
        rank = here
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or 'the disk'}: {error.strerror or error}"
    problems = getattr(error, "problems", [text])
    where = f"rank {rank}: " if rank else ""
    if len(problems) > 1:
        print("\n".join([f"invert.py: {where}{len(problems)} mistakes", *problems]), file=sys.stderr)
    else:
        print(f"invert.py: {where}{' '.join(problems[0].split())}", file=sys.stderr)


def _main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from models import load_plugin

    for plugin in options.plugin:
        load_plugin(plugin)
    if options.list_models is not None:
        from ensemble.runs.reports import print_models

        print_models(options.list_models)
        return 0
    from ensemble.machine.hardware import choose_devices
    from ensemble.machine.launch import is_main_process, launch_ranks, launched_ranks
    from ensemble.machine.ranks import process_context
    from ensemble.runs.checkpoints import is_finished
    from ensemble.runs.folder import check_output
    from ensemble.runs.plan import check_placement, plan
    from ensemble.runs.run import Interrupted, run

    recipe = _recipe(options)
    output = Path(options.output).expanduser()
    resume = options.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if options.nproc is not None and "RANK" in os.environ:
        raise ValueError("--nproc starts ranks itself; under torchrun leave it out")
    if options.nproc is not None and options.nproc < 1:
        raise ValueError(f"--nproc must be at least 1, not {options.nproc}")
    named = recipe.runtime.device
    nproc = options.nproc
    if nproc is None and "RANK" not in os.environ and not isinstance(named, str) and len(named) > 1:
        nproc = len(named)
    device, devices = choose_devices(named)
    planned = plan(recipe, devices)
    if options.dry_run:
        from ensemble.runs.reports import print_dry_run

        if is_main_process():
            print_dry_run(planned, devices, nproc or launched_ranks())
        return 0
    if options.resume and is_finished(planned, output):
        if is_main_process():
            print(f"{output}: this run is finished")
        return 0
    check_output(output, options.overwrite or resume)
    _check_writable(output)
    check_placement(planned, nproc or launched_ranks())
    if nproc is not None:
        command = [sys.executable, os.path.abspath(__file__), *_without_nproc(arguments)]
        return launch_ranks(command, nproc)
    with process_context(device) as context:
        try:
            summary = run(planned, output, context, resume=resume, overwrite=options.overwrite, began=_BEGAN)
        except Interrupted as stop:
            if context.is_main:
                print(f"invert.py: {stop}", file=sys.stderr)
            return 0
        if context.is_main:
            from ensemble.runs.reports import print_summary

            print_summary(summary, output)
    return 0


def _recipe(options: argparse.Namespace) -> Any:
    """The recipe file or the defaults of --models, with the command line's options laid over it."""
    from ensemble.config.mistakes import ConfigError
    from ensemble.config.overrides import apply_override
    from ensemble.config.parsing import to_plain
    from ensemble.config.yaml_files import load_yaml
    from ensemble.recipe import default_recipe, parse_recipe
    from models import model_card

    if options.recipe is None and not options.models:
        raise ValueError("name teachers with --models, or a recipe with --recipe; see invert.py --help")
    if options.recipe is not None:
        data = load_yaml(options.recipe)
        if options.models:
            data["teachers"] = [{"model": name} for name in options.models]
    else:
        data = default_recipe(options.models, max(model_card(name).input_size for name in options.models))
    direct = {
        "targets": options.targets if options.targets is None or len(options.targets) > 1 else options.targets[0],
        "images_per_class": options.images_per_class,
        "trials": options.trials,
        "seed": options.seed,
        "verifiers": options.verifier,
    }
    data |= {key: value for key, value in direct.items() if value is not None}
    runtime = {
        "device": options.devices or options.device,
        "replicas": options.replicas,
        "precision": options.precision,
        "compile": options.compile,
        "reproducible": options.reproducible,
        "micro_batch": int(options.micro_batch) if str(options.micro_batch).isdigit() else options.micro_batch,
    }
    runtime = {key: value for key, value in runtime.items() if value is not None}
    if runtime:
        data["runtime"] = {**(data.get("runtime") or {}), **runtime}
    for assignment in options.set:
        with suppress(ConfigError):  # mistakes are told below; an override may mend them
            data = to_plain(parse_recipe(data))  # all fields are there to be overridden
        data = apply_override(data, assignment)
    recipe = parse_recipe(data)
    return recipe if options.iterations is None else recipe.with_iterations(options.iterations)


def _check_writable(output: Path) -> None:
    there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is a file"
        raise ValueError(f"output: {output} cannot be made, {there} {why}; give another folder")


def _without_nproc(arguments: list[str]) -> list[str]:
    rest, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--nproc":
            skip = True
        elif not argument.startswith("--nproc="):
            rest.append(argument)
    return rest


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        code = main()
    except Exception:
        if "RANK" not in os.environ:
            raise
        traceback.print_exc()
        code = 1
    if "RANK" in os.environ:
        # All is written; threads of the communication library can abort a rank whose interpreter winds down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
