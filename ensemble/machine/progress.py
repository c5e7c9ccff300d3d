"""What shows that something goes on: a bar in a terminal, lines in a file, or nothing."""

from __future__ import annotations

import html
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from statistics import mean
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from ensemble.machine.streams import unfailing


class ProgressReporter(Protocol):
    """What shows a run's progress. `close` ends the display and may be called at any time, also twice."""

    def start(self, total: int, resumed_at: int = 0) -> None:
        """Begins anew with `total` steps, of which the first `resumed_at` were done before, and without values."""

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Step `step`, counted from 0, is done; `values` only where this step was recorded."""

    def message(self, text: str) -> None:
        """Shows one line beside the progress."""

    def close(self) -> None: ...


def progress_reporter(rank: int = 0, stream: TextIO | None = None, quiet: bool = False) -> ProgressReporter:
    """A bar where `stream` (default: stdout) is a terminal or a notebook, else plain lines; silence on ranks but 0.

    `quiet` leaves only warnings, as Python's own. A stream that cannot be written falls silent.
    """
    stream = sys.stdout if stream is None else stream
    if rank != 0 or (stream is None and not quiet):  # Python has no stdout where it was closed
        return SilentProgress()
    if quiet:
        return QuietProgress()
    if _in_notebook():
        return NotebookProgress()
    stream = unfailing(stream)
    return TerminalProgress(Console(file=stream)) if stream.isatty() else PlainProgress(stream)


class SilentProgress:
    """Shows nothing."""

    def start(self, total: int, resumed_at: int = 0) -> None:
        pass

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class FallingSilent:
    """Another display, of which a failure ends the display and nothing else."""

    def __init__(self, display: ProgressReporter) -> None:
        self._display = display
        self._failed = False

    def start(self, total: int, resumed_at: int = 0) -> None:
        self._show("start", total, resumed_at)

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        self._show("step", step, values)

    def message(self, text: str) -> None:
        self._show("message", text)

    def close(self) -> None:
        with suppress(Exception, SystemExit):  # also after a failure: a bar has a thread
            self._display.close()

    def _show(self, what: str, *arguments: object) -> None:
        if self._failed:
            return
        try:
            getattr(self._display, what)(*arguments)
        except Warning:  # somebody asked for warnings as errors
            raise
        except (Exception, SystemExit):  # with the latter rich answers a broken pipe
            self._failed = True


class QuietProgress(SilentProgress):
    """Shows nothing but warnings."""

    def message(self, text: str) -> None:
        if text.startswith("warning: "):
            warnings.warn_explicit(text.removeprefix("warning: "), UserWarning, "<run>", 1)


class PlainProgress:
    """Lines for a log file: at most one every `interval` seconds, and one at the end."""

    def __init__(self, stream: TextIO, interval: float = 10.0) -> None:
        self._stream = stream
        self._interval = interval
        self._total = self._done = self._shown = 0
        self._shown_at = 0.0
        self._values: Mapping[str, float] = {}
        self._values_of = 0

    def start(self, total: int, resumed_at: int = 0) -> None:
        self._total, self._done, self._shown = total, resumed_at, resumed_at
        self._values = {}
        self._shown_at = time.monotonic()
        if resumed_at:
            self.message(f"resumed at step {resumed_at} of {total}")

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        self._done = step + 1
        if values:
            self._values, self._values_of = dict(values), step + 1
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._done > self._shown:
            self._show()

    def _show(self) -> None:
        now = time.monotonic()
        rate = (self._done - self._shown) / max(now - self._shown_at, 1e-9)
        parts = [f"step {self._done}/{self._total}", _rate(rate)]
        if rate > 0 and self._done < self._total:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        self._shown, self._shown_at = self._done, now
        if self._values and self._values_of < self._done:
            parts.append(f"at step {self._values_of}:")
        self.message("  ".join([*parts, _losses(self._values)]).rstrip())


class _RateColumn(TextColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else "", style="progress.data.speed")


class TerminalProgress:
    """A bar with steps, rate, time left and the losses recorded last."""

    def __init__(self, console: Console) -> None:
        losses = TextColumn("{task.fields[losses]}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn("", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            losses,
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("", total=None, losses="", visible=False)

    def start(self, total: int, resumed_at: int = 0) -> None:
        self._progress.reset(self._task, total=total, completed=resumed_at, visible=True, losses="")
        self._progress.start()
        if resumed_at:
            self.message(f"resumed at step {resumed_at} of {total}")

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        if values:
            self._progress.update(self._task, completed=step + 1, losses=_losses(values))
        else:
            self._progress.update(self._task, completed=step + 1)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class NotebookProgress:
    """A bar below the cell, drawn anew a few times a second; messages stand above it."""

    def __init__(self, interval: float = 0.25) -> None:
        from IPython.display import HTML, display  # there is one where there is a notebook

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)
        self._interval = interval
        self._messages: list[str] = []
        self._total = self._done = self._began_at_step = 0
        self._began = self._shown_at = 0.0
        self._values: Mapping[str, float] = {}

    def start(self, total: int, resumed_at: int = 0) -> None:
        self._total, self._done, self._began_at_step = total, resumed_at, resumed_at
        self._values = {}
        self._began = time.monotonic()
        self._show()

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        self._done = step + 1
        if values:
            self._values = dict(values)
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._show()

    def close(self) -> None:
        self._show()

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        rate = (self._done - self._began_at_step) / max(self._shown_at - self._began, 1e-9)
        lines = [html.escape(text) for text in self._messages]
        if self._total:
            bar = f"<progress value='{self._done}' max='{self._total}'></progress>"
            parts = [f"{self._done}/{self._total}", _rate(rate), html.escape(_losses(self._values))]
            lines.append(f"{bar} {'  '.join(parts)}")
        self._handle.update(self._html("<br>".join(lines)))


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel; IPython is looked up, not imported."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _losses(values: Mapping[str, float]) -> str:
    """Of a loss that each teacher has, as NAME/loss, the mean over the teachers: a line holds no more."""
    of_teachers: dict[str, list[float]] = {}
    for name, value in values.items():
        of_teachers.setdefault(name.rpartition("/")[2], []).append(value)
    return "  ".join(f"{name} {_number(mean(each))}" for name, each in of_teachers.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def _rate(steps_per_second: float) -> str:
    if steps_per_second >= 0.95:
        return f"{steps_per_second:.1f} steps/s"
    return f"{1 / max(steps_per_second, 1e-9):.1f} s/step"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
