"""Paths into plain data: overrides as `a.b[1].c=value`, and where two configurations differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ensemble.config.mistakes import ConfigError, join, show
from ensemble.config.yaml_files import kinds_differ, load_text

_STEP = re.compile(r"\.(?P<word>[\w-]+)|\[(?P<index>\d+)\]|\['(?P<quoted>[^']*)'\]")


def apply_override(data: dict[str, Any], override: str) -> dict[str, Any]:
    """`data` with `override`, written `a.b[1].c=value`, applied; `data` itself stays as it is.

    The value is YAML (`3`, `1e-4`, `[1, 2]`, `{kind: adam, lr: 0.1}`; nothing after the `=` means null).
    Mappings and lists on the way that are missing or null are created; a list's next entry is added where the path
    ends with it, `objectives[3]={kind: l2}` after three. Another `kind` takes the fields of the one before with it.

    Raises ConfigError with one line if the override is malformed, an index is out of range, or the path leads
    through something that is neither a mapping nor a list.
    """
    steps, text = _split_override(override)
    return _replace(data, steps, load_text(text, f"override {override!r}"), "", override)


def value_at(data: Any, path: str) -> Any:
    """What stands at a path as `a.b[1].c`; None also where nothing does.

    Raises ConfigError with one line where this is no path.
    """
    steps, rest = _split_override(f"{path}=")
    if rest:
        raise ConfigError([f"{path}: no path of a field; write it as optimizer.lr or objectives[0].weight"])
    for step in steps:
        try:
            data = data[step]
        except (LookupError, TypeError):
            return None
    return data


def _split_override(override: str) -> tuple[list[str | int], str]:
    rest = override if override.startswith("[") else f".{override}"
    steps: list[str | int] = []
    while match := _STEP.match(rest):
        word, index, quoted = match.group("word", "index", "quoted")
        steps.append(int(index) if index else word or quoted)
        rest = rest[match.end() :]
    if not steps or not rest.startswith("="):
        raise ConfigError(
            [f"override {override!r}: expected path=value, as optimizer.lr=0.1 or objectives[0].weight=3"]
        )
    return steps, rest[1:]


def _replace(node: Any, steps: Sequence[str | int], value: Any, path: str, override: str) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    here = f"override {override!r}: {path or 'the top level'}"
    if isinstance(step, int):
        node = [] if node is None else node
        if not isinstance(node, list):
            raise ConfigError([f"{here} is not a list but {show(node)}"])
        if step > len(node) or (rest and step == len(node)):
            raise ConfigError([f"{here} has {len(node)} entries, counted from 0; there is no [{step}]"])
        below = node[step] if step < len(node) else None
        return [*node[:step], _replace(below, rest, value, f"{path}[{step}]", override), *node[step + 1 :]]
    node = {} if node is None else node
    if not isinstance(node, dict):
        raise ConfigError([f"{here} is not a mapping but {show(node)}"])
    if step == "kind" and not rest and kinds_differ(node, {"kind": value}):
        return {"kind": value}
    return {**node, step: _replace(node.get(step), rest, value, join(path, step), override)}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The paths at which two results of `to_plain` differ.

    Below mappings of different kinds, only `kind` is named; of lists of different lengths, the list.
    """
    return _differences(a, b, "")


def is_below(path: str, names: Iterable[str]) -> bool:
    """Whether a path is one of these names or leads to something within it."""
    return any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in names)


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.get("kind") != b.get("kind"):
            return [join(path, "kind")]
        found = []
        for key in dict.fromkeys([*a, *b]):
            below = join(path, key)
            found += _differences(a[key], b[key], below) if key in a and key in b else [below]
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [where for index, (x, y) in pairs for where in _differences(x, y, f"{path}[{index}]")]
    # True == 1, but they do not mean the same
    return [] if a == b and isinstance(a, bool) == isinstance(b, bool) else [path]
