"""Words of messages."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 classes`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
