"""A user's mistakes: how they are collected, and the words they are told in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_WORD = re.compile(r"[\w-]+")


class ConfigError(ValueError):
    """A user's mistakes in a configuration: `problems` holds one line for each, `str()` joins them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def show(data: object) -> str:
    """The value as a message shows it, in one short line."""
    if isinstance(data, dict | list | tuple):
        return "a mapping" if isinstance(data, dict) else "a list"
    if data is None or isinstance(data, bool):
        return {None: "null", True: "true", False: "false"}[data]
    text = repr(data) if isinstance(data, str | int | float) else " ".join(str(data).split())
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(
    text: object, known: Iterable[str], otherwise: str = "", written: Mapping[str, str] | None = None, most: int = 1
) -> str:
    """`did you mean 'cat'?`, with up to `most` of the `known` that are near, or `otherwise` where none is.

    `written` says how a known one is written in the message.
    """
    near = difflib.get_close_matches(text, [*known], n=most) if isinstance(text, str) else []
    return f"did you mean {' or '.join(repr((written or {}).get(one, one)) for one in near)}?" if near else otherwise


def nearest(name: object, valid: Iterable[Any], noun: str) -> str:
    names = list(valid)
    return did_you_mean(name, names, f"valid {noun}: {', '.join(names) or 'none'}")


def join(path: str, key: str) -> str:
    if not _WORD.fullmatch(key):
        return f"{path}['{key}']"
    return f"{path}.{key}" if path else key


def at(path: str, message: str) -> str:
    return f"{path}: {message}" if path else message
