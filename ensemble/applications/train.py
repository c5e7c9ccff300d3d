"""Train a network from a recipe; the same command again goes on where it stopped."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import NoReturn

_PROG = "python -m ensemble.training"
_EPILOG = """examples:
  python -m ensemble.training --recipe recipes/training/resnet20_cifar.yaml --output results/resnet20_cifar \\
      --set data.path=cifar10-jpeg.tar.xz
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {_PROG} --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(
        prog=_PROG,
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--recipe", required=True, metavar="FILE", help="a YAML training recipe")
    p.add_argument("--output", required=True, metavar="DIR", help="results folder")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="any field of the recipe")
    p.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    p.add_argument("--export", metavar="DIR", help="also write bundled weights and their record there")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a failure of the machine, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        text = str(error)
        lines = text.splitlines()
        print(
            f"training: {text}" if len(lines) == 1 else f"training: {len(lines)} mistakes\n{text}",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("training: stopped; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130


def _main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from ensemble.config.overrides import apply_override
    from ensemble.config.yaml_files import load_yaml
    from ensemble.machine.hardware import choose_device
    from ensemble.training.recipe import parse_training_recipe
    from ensemble.training.run import run

    data = load_yaml(options.recipe)
    for assignment in options.set:
        data = apply_override(data, assignment)
    recipe = parse_training_recipe(data)
    output = Path(options.output).expanduser()
    export = Path(options.export).expanduser() if options.export else None
    command = reproducing_command(Path(options.recipe), options.set)
    summary = run(recipe, output, choose_device(options.device), export=export, command=command)
    print(f"accuracy {summary['accuracy']:.2%} on {summary['test_images']} test images: {output}")
    if export is not None:
        print(f"exported at accuracy {summary['exported_accuracy']:.2%}: {export}")
    return 0


def reproducing_command(recipe: Path, overrides: list[str]) -> str:
    """The command line that makes these weights again, without paths of this machine."""
    below_here = recipe.resolve().is_relative_to(Path.cwd())
    shown = recipe.resolve().relative_to(Path.cwd()) if below_here else Path(recipe.name)
    words = [_PROG, "--recipe", shlex.quote(shown.as_posix())]
    for override in overrides:
        if not override.startswith("data.path="):
            words += ["--set", shlex.quote(override)]
    return " ".join([*words, "--output", shlex.quote(f"results/{recipe.stem}"), "--export", "models/weights"])


if __name__ == "__main__":
    sys.exit(main())
