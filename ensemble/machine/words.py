"""Words of messages."""

from __future__ import annotations

import os
from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`, `2 classes`."""
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that come more than once as `NAME#1`, `NAME#2`."""
    return tuple(n if names.count(n) == 1 else f"{n}#{names[:i].count(n) + 1}" for i, n in enumerate(names))


def readable(name: str) -> str:
    """A file's name as text that can be written; bytes of it that are none are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")
