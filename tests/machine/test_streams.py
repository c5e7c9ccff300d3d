"""Output as far as it can be written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from ensemble.machine.progress import FallingSilent, PlainProgress, SilentProgress, TerminalProgress, progress_reporter
from ensemble.machine.streams import unfailing, unfailing_output

ROOT = Path(__file__).resolve().parents[2]


class Failing(io.StringIO):
    encoding = "utf-8"

    def __init__(self, error: Exception, terminal: bool = False) -> None:
        super().__init__()
        self.error, self.terminal = error, terminal

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return self.terminal


ERRORS = [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe"), OSError(5, "gone"), ValueError()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_of_every_kind_falls_silent(error: Exception, terminal: bool, capsys) -> None:
    reporter = progress_reporter(0, Failing(error, terminal))
    assert isinstance(reporter, TerminalProgress if terminal else PlainProgress)
    reporter.start(3, resumed_at=1)
    for step in range(3):
        reporter.step(step, {"loss": 1.0})
    reporter.message("text")
    reporter.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_tables_do_not_end_the_process(error: Exception) -> None:
    """rich answers a broken pipe with SystemExit."""
    Console(file=unfailing(Failing(error))).print(Table("a"))


def test_letters_that_the_terminal_cannot_spell() -> None:
    written = io.BytesIO()
    stream = unfailing(io.TextIOWrapper(written, encoding="ascii", write_through=True))
    print("Zürich\udcff", file=stream)
    print("goes on", file=stream, flush=True)
    assert written.getvalue() == b"Z?rich?\ngoes on\n"


@pytest.mark.parametrize("error", [*ERRORS, SystemExit(1), RuntimeError("a widget")], ids=repr)
def test_another_display_falls_silent_and_is_closed(error: BaseException) -> None:
    calls = []

    class Display(SilentProgress):
        def message(self, text: str) -> None:
            calls.append(text)
            raise error

        def close(self) -> None:
            calls.append("close")
            raise error

    display = FallingSilent(Display())
    display.start(1)
    display.message("first")
    display.message("second")
    display.close()
    assert calls == ["first", "close"]


@pytest.mark.parametrize("error", [UserWarning("asked for as an error"), KeyboardInterrupt()], ids=repr)
def test_what_the_user_asks_for_is_no_failure_of_the_display(error: BaseException) -> None:
    class Display(SilentProgress):
        def message(self, text: str) -> None:
            raise error

    with pytest.raises(type(error)):
        FallingSilent(Display()).message("text")


def test_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError), unfailing_output():
        raise RuntimeError
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("shell", ["{} > /dev/full", "{} | true", "{} >&- 2>&-", "{} > /dev/full 2>&1"])
def test_what_cannot_be_shown_does_not_change_the_exit_code(shell: str) -> None:
    """Not even where the interpreter writes out at its end what it had held back."""
    text = (
        "from ensemble.machine.streams import unfailing_output as u\nwith u(): print('x' * 9)\nimport sys; sys.exit(7)"
    )
    command = shell.format(f'"{sys.executable}" -c "{text}"')
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode == 7 and ended.stderr == ""
