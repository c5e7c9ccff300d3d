"""What shows that something goes on."""

from __future__ import annotations

import io
import os
import sys
import types

import pytest
from rich.console import Console

from ensemble.machine.progress import (
    NotebookProgress,
    PlainProgress,
    QuietProgress,
    SilentProgress,
    TerminalProgress,
    progress_reporter,
)


def test_plain_lines_are_few_and_the_last_step_is_among_them():
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=1e9)
    reporter.start(total=100, resumed_at=40)
    for step in range(40, 100):
        reporter.step(step, {"loss": 1 / (step + 1), "bn": 2.0} if step % 10 == 9 else None)
    reporter.message("done")
    reporter.close()
    reporter.close()
    first, message, last = stream.getvalue().splitlines()
    assert first == "resumed at step 40 of 100" and message == "done"
    assert last.startswith("step 100/100  ") and last.endswith("steps/s  loss 0.01  bn 2")


def test_plain_lines_come_at_every_interval():
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=0)
    reporter.start(total=3)
    for step in range(2):
        reporter.step(step)
    reporter.close()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("step 1/3  ") and first.endswith(" left")
    assert second.startswith("step 2/3  ")


def test_closing_before_the_start_is_harmless():
    stream = io.StringIO()
    for reporter in (PlainProgress(stream), TerminalProgress(Console(file=stream)), SilentProgress()):
        reporter.close()
    assert stream.getvalue().strip() == ""


def test_a_line_shows_the_mean_over_teachers():
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=0)
    reporter.start(total=1)
    values = {"loss": 4.0, "timm/resnet18/bn_matching": 0.25, "b/bn_matching": 0.75, "b/accuracy": 1.0}
    reporter.step(0, values)
    assert stream.getvalue().endswith("loss 4  bn_matching 0.5  accuracy 1\n")


def test_terminal_shows_steps_rate_and_losses():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    reporter = TerminalProgress(console)
    reporter.start(total=50, resumed_at=20)
    for step in range(20, 50):
        reporter.step(step, {"loss": 0.125} if step == 30 else None)
    reporter.message("[cyan]kept as it is[/cyan]")
    reporter.close()
    reporter.close()
    shown = stream.getvalue()
    assert "[cyan]kept as it is[/cyan]" in shown and "resumed at step 20 of 50" in shown
    last = next(line for line in reversed(shown.splitlines()) if "50/50" in line)
    assert "steps/s" in last and "loss 0.125" in last


def test_the_reporter_fits_rank_and_stream():
    assert isinstance(progress_reporter(1), SilentProgress)
    assert isinstance(progress_reporter(0, io.StringIO()), PlainProgress)
    main, terminal = os.openpty()
    with os.fdopen(main), os.fdopen(terminal, "w") as stream:
        assert isinstance(progress_reporter(0, stream), TerminalProgress)


def test_silence(capsys):
    reporter = progress_reporter(3)
    reporter.start(2)
    reporter.step(0, {"loss": 1.0})
    reporter.message("text")
    reporter.close()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_quiet_leaves_warnings():
    reporter = progress_reporter(0, quiet=True)
    assert isinstance(reporter, QuietProgress)
    reporter.message("resumed at step 3")
    with pytest.warns(UserWarning, match="^the loss did not fall$"):
        reporter.message("warning: the loss did not fall")


class Handle:
    """Stands for IPython's display handle."""

    shown: str = ""

    def update(self, text: str) -> None:
        self.shown = text


def test_a_notebook_sees_a_bar(monkeypatch):
    handle, display = Handle(), types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda text, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    reporter = NotebookProgress(interval=0)
    reporter.start(10)
    reporter.message("a < b")
    reporter.step(3, {"loss": 0.5})
    reporter.close()
    assert "a &lt; b" in handle.shown and "value='4' max='10'" in handle.shown and "loss 0.5" in handle.shown


def test_values_of_an_earlier_step_are_told_as_such() -> None:
    stream = io.StringIO()
    reporter = PlainProgress(stream, interval=0.0)
    reporter.start(3)
    reporter.step(0, {"loss": 0.5})
    reporter.step(1)
    first, second = stream.getvalue().splitlines()
    assert first.endswith("loss 0.5") and "at step" not in first
    assert second.endswith("at step 1:  loss 0.5")


def test_a_new_start_forgets_the_values_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search's last metric is not that of its confirmation."""
    handle, display = Handle(), types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda text, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    plain, terminal = io.StringIO(), io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=120, color_system=None)
    for reporter in (PlainProgress(plain, interval=0.0), TerminalProgress(console), NotebookProgress(interval=0)):
        reporter.start(12)
        reporter.step(11, {"metric": 30.77})
        reporter.start(8)
        reporter.step(1)
        reporter.close()
    assert "metric" not in plain.getvalue().splitlines()[-1]
    assert "metric" not in next(line for line in reversed(terminal.getvalue().splitlines()) if "2/8" in line)
    assert "metric" not in handle.shown
