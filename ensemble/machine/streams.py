"""Output as far as it can be written: nothing that is shown may cost a result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class _Unfailing:
    def __init__(self, stream: TextIO, own: bool) -> None:
        self._stream = stream
        self._own = own
        self._silent = False

    def write(self, text: str) -> int:
        if not self._silent:
            try:
                self._write(text)
            except (OSError, ValueError):
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        if not self._silent:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._fall_silent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))

    def _fall_silent(self) -> None:
        self._silent = True
        if self._own:  # what is still held back would fail once more where the interpreter ends
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def unfailing(stream: TextIO, own: bool = False) -> TextIO:
    """`stream`, which falls silent once it cannot be written; letters that it cannot spell become `?`.

    `own`: it is this process' to redirect, so that nobody else meets the failure either.
    """
    return cast(TextIO, _Unfailing(stream, own))


@contextmanager
def unfailing_output() -> Iterator[None]:
    """stdout and stderr are unfailing inside, and flushed at the end; those that were closed lead nowhere."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        shown = [unfailing(nowhere if stream is None else stream, own=stream is not None) for stream in before]
        sys.stdout, sys.stderr = shown
        try:
            yield
        finally:
            for stream in shown:
                stream.flush()
            sys.stdout, sys.stderr = before
