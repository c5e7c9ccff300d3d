"""What commands share: the parser, and options that mean the same everywhere."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ensemble.machine.environment import launched_ranks
from ensemble.machine.files import user_path, why_unwritable


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def __init__(self, program: str, text: str) -> None:
        """`text` is the command's docstring: what it does, and examples."""
        description, _, examples = text.partition("\n\nexamples:\n")
        super().__init__(
            prog=program,
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--plugin", action="append", default=[], metavar="FILE", help="a Python file that adds models or terms"
        )

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's own; of options that are none, the message names the nearest that are."""
        options, unknown = self.parse_known_args(self._shielded(args))
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._nearest(unknown)}")
        return options

    def _shielded(self, args: Sequence[str]) -> list[str]:
        """A selection of units may begin with a minus, which argparse takes for an option's: with a space before it."""
        found, option = [], ""
        for text in args:
            option = text if text.startswith("--") else option
            is_value = option == "--units" and text not in (option, "-h")
            found.append(f" {text}" if is_value and text.startswith("-") else text)
        return found

    def _nearest(self, unknown: Sequence[str]) -> str:
        known = {option.lstrip("-"): option for option in self._option_string_actions}
        if "set" in known and not any(argument.startswith("-") for argument in unknown) and "=" in "".join(unknown):
            return " (fields are set by --set PATH=VALUE)"
        names = [argument.partition("=")[0].lstrip("-") for argument in unknown if argument.startswith("-")]
        near = [known[match] for name in names for match in difflib.get_close_matches(name, known, n=1)]
        return f" (did you mean {' and '.join(near)}?)" if near else ""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def list_commands(self, commands: Mapping[str, str]) -> None:
        """Add the commands to the help."""
        width = max(map(len, commands))
        lines = [f"  {name:<{width}}  {text}" for name, text in commands.items()]
        self.description = "\n".join([self.description or "", "", f"commands ({self.prog} COMMAND --help):", *lines])


def check_alone(command: str) -> None:
    """ValueError where a launcher started several ranks of a command that is one process."""
    if launched_ranks() > 1:
        raise ValueError(f"{command} is one process; start it without torchrun")


def add_output(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--output, and what becomes of an earlier run there."""
    group = parser.add_argument_group("results")
    shown = " (default: %(default)s)" if default else ""
    group.add_argument(
        "--output", metavar="DIR", default=default, required=default is None, help=f"results folder{shown}"
    )
    earlier = group.add_mutually_exclusive_group()
    earlier.add_argument("--overwrite", action="store_true", help="replace an earlier run's results in DIR")
    earlier.add_argument("--resume", action="store_true", help="go on with the run in DIR, or begin")


def add_file(parser: argparse._ActionsContainer, what: str) -> None:
    """--output, one file, and what becomes of it where it exists."""
    parser.add_argument("--output", required=True, metavar="FILE", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")


def file_of(options: argparse.Namespace, *endings: str) -> Path:
    """The --output of `add_file`; ValueError where it may not be written. Nothing is touched."""
    file = user_path(options.output)
    if file.suffix.lower() not in endings:
        raise ValueError(f"output: {file} is not the name of such a file; let it end in {endings[0]}")
    check_file("output", file, options.overwrite)
    return file


def check_file(option: str, file: Path, overwrite: bool) -> None:
    """ValueError where `file`, which `option` names, may not be written. Nothing is touched."""
    if file.is_dir():
        raise ValueError(f"{option}: {file} is a folder; give a file's name")
    if (file.exists() or file.is_symlink()) and not overwrite:
        raise ValueError(f"{option}: {file} exists; pass --overwrite to replace it, or give another name")
    if why := why_unwritable(file.absolute().parent):
        raise ValueError(f"{option}: {file} cannot be written, {why}; give another name")


def add_overrides(parser: argparse._ActionsContainer, example: str) -> None:
    """--set, with an `example` that the command takes."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help=f"any field, e.g. {example}",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """--device."""
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
