"""YAML text to plain data and back: no tags, no aliases, every mistake with its line."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ensemble.config.mistakes import ConfigError, show

_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?\Z", re.ASCII)
"""What YAML 1.2 takes for a float, but PyYAML, which reads 1.1, for a string: 1e-4, 1.5e3, -.5."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with floats as `1e-4`, and without tags, aliases, merge keys and duplicate keys.

    Aliases would let one override change two places; `extends` and defaults serve the same end.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._refuse(f"the alias *{event.anchor} is not allowed; write the value out", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            short = tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(f"the tag {short} is not allowed; write a plain value", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._refuse("the merge key << is not allowed; write the values out", key_node.start_mark)
            if isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node)
                if key in seen:
                    self._refuse(f"duplicate key {show(key)}", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # what looks like a date or a number and is none: 2026-13-01
            self._refuse(str(error), node.start_mark)

    @staticmethod
    def _refuse(problem: str, mark: Any) -> typing.NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def load_yaml(path: str | Path, shipped: Callable[[str], Path] | None = None) -> dict[str, Any]:
    """The mapping in the YAML file `path`, over the one that its key `extends` names, relative to that file.

    Where no file is there, `shipped` says which one has that name, or raises ValueError.

    Mappings are merged key by key, except that one whose `kind` differs replaces the other: the fields of
    one kind mean nothing to another. Lists and scalars are replaced. A file that is extended cannot itself
    extend.

    Raises ConfigError with one line, `file:line: what is wrong`, for a file that cannot be read, is not YAML
    or not a mapping, or has tags, aliases, merge keys or duplicate keys.
    """
    path = Path(path)
    data = _load_mapping(path)
    if "extends" not in data:
        return data
    name = data.pop("extends")
    if not isinstance(name, str):
        raise ConfigError([f"{path}: extends: expected the name of a file, got {show(name)}"])
    below = path.parent / name
    if shipped is not None and not below.is_file() and not below.suffix:
        try:
            below = shipped(name)
        except ValueError as error:
            raise ConfigError([f"{path}: extends: {error}"]) from None
    base = _load_mapping(below)
    if "extends" in base:
        raise ConfigError([f"{path}: extends: {name} itself extends a file; only one level is allowed"])
    return _merge(base, data)


def _load_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text"]) from None
    data = load_text(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: expected a mapping, got {show(data)}"])
    return data


def load_text(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"{source}:{line}: {_in_words(error, text.splitlines()[line - 1 : line])}"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"{source}:{line}: {error.reason}"
    except RecursionError:
        problem = f"{source}: nested too deeply"
    raise ConfigError([problem])


def _in_words(error: yaml.MarkedYAMLError, line: Sequence[str]) -> str:
    """The parser's words, and what the `line` that it stopped at lets one expect."""
    said = ", ".join(filter(None, [error.context, error.problem]))
    indented = bool(line) and line[0].startswith((" ", "\t"))
    if indented and "\\t" in said:
        return f"{said}; indent with spaces, not with tabs"
    if indented and ("<block mapping start>" in said or "mapping values are not allowed" in said):
        return f"{said}; indent it as the lines that it belongs to"
    if "mapping values are not allowed" in said:
        return f"{said}; put a value that holds a colon in quotes"
    return said


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        same_kind = isinstance(value, dict) and isinstance(below, dict) and not kinds_differ(below, value)
        merged[key] = _merge(below, value) if same_kind else value  # type: ignore[arg-type]
    return merged


def kinds_differ(below: dict[str, Any], over: dict[str, Any]) -> bool:
    return "kind" in over and "kind" in below and over["kind"] != below["kind"]


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes a value out each time it occurs: `load_yaml` refuses aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):  # the dumper quotes strings that the loader would take for numbers
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """`mapping` as YAML text in its own order of keys; `load_yaml` reads it back equal."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
