"""YAML to frozen dataclasses whose fields are the allowed keys; every mistake is reported at once.

Paths look like `objectives[1].weight`; a key that is not a plain word is written `weights['layer1.0']`.
The paths in messages, in `differences` and in overrides are the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml

T = TypeVar("T")

_INVALID: Any = object()
_WORD = re.compile(r"[\w-]+")
_STEP = re.compile(r"\.(?P<word>[\w-]+)|\[(?P<index>\d+)\]|\['(?P<quoted>[^']*)'\]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}


class ConfigError(ValueError):
    """A user's mistakes in a configuration: `problems` holds one line for each, `str()` joins them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


# ---- plain data -> dataclasses


def parse(cls: type[T], data: object, path: str = "") -> T:
    """The instance of the dataclass `cls` that `data`, a mapping as `load_yaml` returns it, describes.

    Annotations may be int, float, bool, str, `X | None`, `tuple[X, ...]`, `tuple[X, Y]` (from lists),
    Literal, `dict[str, X]`, dataclasses, and unions of these. A union of dataclasses is told apart by the
    key `kind`, which each class states as `kind: ClassVar[str]`. A float accepts integers and strings such
    as '1e-4' (PyYAML reads that as a string) but not nan; an int accepts neither booleans nor 3.0. A missing
    key takes the field's default.

    Raises ConfigError with all problems, each as `path: what is wrong`, the paths beginning with `path`.
    What `__post_init__` refuses with a ValueError is among them; it runs only if all values of its instance
    are valid.
    """
    problems: list[str] = []
    instance = _instance([cls], data, path, problems)
    if problems:
        raise ConfigError(problems)
    return instance


def _value(hint: Any, data: object, path: str, problems: list[str]) -> Any:
    """`data` as `hint` demands, or _INVALID after adding to `problems`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), data, path, problems)
    if dataclasses.is_dataclass(hint):
        return _instance([hint], data, path, problems)
    if origin is tuple:
        return _tuple(hint, data, path, problems)
    if origin is dict:
        return _dict(hint, data, path, problems)
    value = _scalar(hint, data)
    if value is _INVALID:
        problems.append(_expected([hint], data, path))
    return value


def _union(members: Sequence[Any], data: object, path: str, problems: list[str]) -> Any:
    assert not {float, str} <= set(members), f"{path}: in a union of float and str, '1e-4' would be ambiguous"
    shape = _shape_of_data(data)
    candidates = [member for member in members if _shape_of_hint(member) is shape]
    if any(dataclasses.is_dataclass(member) for member in candidates):
        return _instance(candidates, data, path, problems)
    if shape is not None and len(candidates) == 1:
        return _value(candidates[0], data, path, problems)
    # float last: it also takes integers, and those of `float | int` are to stay what they are
    for member in sorted(candidates, key=lambda member: member is float):
        trial: list[str] = []
        value = _value(member, data, path, trial)
        if not trial:
            return value
    problems.append(_expected(members, data, path))
    return _INVALID


def _instance(classes: Sequence[Any], data: object, path: str, problems: list[str]) -> Any:
    """An instance of the one of `classes` that the key `kind` names; a single class may go without."""
    assert all(dataclasses.is_dataclass(cls) for cls in classes), f"{path}: not all dataclasses: {classes}"
    if not isinstance(data, dict):
        problems.append(_expected(classes, data, path))
        return _INVALID
    kinds = {_kind(cls): cls for cls in classes}
    assert len(kinds) == len(classes) and (len(classes) == 1 or None not in kinds), f"{path}: kinds {list(kinds)}"
    cls, names = classes[0], []
    if None not in kinds:
        names.append("kind")
        kind_path = _join(path, "kind")
        if "kind" in data:
            kind = data["kind"]
            if not isinstance(kind, str) or kind not in kinds:
                problems.append(f"{kind_path}: unknown kind {_show(kind)}; {_nearest(kind, kinds, 'kinds')}")
                return _INVALID
            cls = kinds[kind]
        elif len(classes) > 1:
            problems.append(f"{kind_path}: missing; valid kinds: {', '.join(map(str, kinds))}")
            return _INVALID

    fields = [field for field in dataclasses.fields(cls) if field.init]
    names += [field.name for field in fields]
    for key in data:
        if not isinstance(key, str):
            problems.append(_at(path, f"the key {_show(key)} is not a string; put it in quotes"))
        elif key not in names:
            problems.append(f"{_join(path, key)}: unknown key; {_nearest(key, names, 'keys')}")

    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    valid = True
    for field in fields:
        if field.name in data:
            value = _value(hints[field.name], data[field.name], _join(path, field.name), problems)
            values[field.name] = value
            valid = valid and value is not _INVALID
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{_join(path, field.name)}: missing")
            valid = False
    if not valid:
        return _INVALID
    try:
        return cls(**values)
    except ValueError as error:
        messages = error.problems if isinstance(error, ConfigError) else [str(error)]
        problems.extend(_at(path, message) for message in messages)
        return _INVALID


def _tuple(hint: Any, data: object, path: str, problems: list[str]) -> Any:
    if not isinstance(data, list):
        problems.append(_expected([hint], data, path))
        return _INVALID
    hints = get_args(hint)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(data)
    elif len(hints) != len(data):
        problems.append(_at(path, f"expected a list of {len(hints)}, got {len(data)}"))
        return _INVALID
    values = tuple(
        _value(item_hint, item, f"{path}[{index}]", problems)
        for index, (item_hint, item) in enumerate(zip(hints, data, strict=True))
    )
    return _INVALID if any(value is _INVALID for value in values) else values


def _dict(hint: Any, data: object, path: str, problems: list[str]) -> Any:
    key_hint, value_hint = get_args(hint)
    assert key_hint is str, f"{path}: mappings have string keys, not {key_hint}"
    if not isinstance(data, dict):
        problems.append(_expected([hint], data, path))
        return _INVALID
    values = {}
    for key, item in data.items():
        if isinstance(key, str):
            values[key] = _value(value_hint, item, _join(path, key), problems)
        else:
            problems.append(_at(path, f"the key {_show(key)} is not a string; put it in quotes"))
            values[key] = _INVALID
    return _INVALID if any(value is _INVALID for value in values.values()) else values


def _scalar(hint: Any, data: object) -> Any:
    if get_origin(hint) is Literal:
        # by type as well: True == 1 == 1.0
        return next((option for option in get_args(hint) if type(option) is type(data) and option == data), _INVALID)
    assert hint in _NAMES, f"unsupported annotation {hint}"
    if hint is float:
        return _float(data)
    return data if type(data) is hint else _INVALID


def _float(data: object) -> Any:
    if isinstance(data, float):
        return _INVALID if math.isnan(data) else data
    if type(data) is int or (isinstance(data, str) and _NUMBER.fullmatch(data)):
        try:
            value = float(data)
        except OverflowError:
            return _INVALID
        return value if math.isfinite(value) else _INVALID
    return _INVALID


def _kind(cls: Any) -> str | None:
    hint = typing.get_type_hints(cls).get("kind")
    if hint is ClassVar or get_origin(hint) is ClassVar:
        assert isinstance(cls.kind, str), f"{cls.__name__}.kind is not a string"
        return cls.kind
    return None


def _shape_of_hint(hint: Any) -> type | None:
    if dataclasses.is_dataclass(hint) or get_origin(hint) is dict:
        return dict
    return list if get_origin(hint) is tuple else None


def _shape_of_data(data: object) -> type | None:
    return next((shape for shape in (dict, list) if isinstance(data, shape)), None)


# ---- messages


def _expected(hints: Sequence[Any], data: object, path: str) -> str:
    """The line for a value that is none of `hints`, with the nearest word or a remedy if there is one."""
    message = f"expected {' or '.join(dict.fromkeys(map(_describe, hints)))}, got {_show(data)}"
    words = [option for hint in hints if get_origin(hint) is Literal for option in get_args(hint)]
    words = [word for word in words if isinstance(word, str)]
    if isinstance(data, str):
        if close := difflib.get_close_matches(data, words, n=1):
            message += f"; did you mean '{close[0]}'?"
    elif (words or str in hints) and data is not None and _shape_of_data(data) is None:
        # YAML 1.1 reads off, no and 2026-01-31 as something else than strings
        message += "; put it in quotes"
    return _at(path, message)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        options = get_args(hint)
        return ("one of " if len(options) > 1 else "") + ", ".join(map(_show, options))
    shape = _shape_of_hint(hint)
    if shape is None:
        return _NAMES[hint]
    return "a mapping" if shape is dict else "a list"


def _show(data: object) -> str:
    if isinstance(data, dict | list):
        return "a mapping" if isinstance(data, dict) else "a list"
    if data is None or isinstance(data, bool):
        return {None: "null", True: "true", False: "false"}[data]
    text = repr(data) if isinstance(data, str | int | float) else str(data)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(name: object, valid: Iterable[Any], noun: str) -> str:
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) else []
    return f"did you mean '{close[0]}'?" if close else f"valid {noun}: {', '.join(names) or 'none'}"


def _join(path: str, key: str) -> str:
    if not _WORD.fullmatch(key):
        return f"{path}['{key}']"
    return f"{path}.{key}" if path else key


def _at(path: str, message: str) -> str:
    return f"{path}: {message}" if path else message


# ---- YAML -> plain data


class _Loader(yaml.SafeLoader):
    """SafeLoader without tags, aliases, merge keys and duplicate keys.

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
                    self._refuse(f"duplicate key {_show(key)}", key_node.start_mark)
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


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`, over the one that its key `extends` names, relative to that file.

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
        raise ConfigError([f"{path}: extends: expected the name of a file, got {_show(name)}"])
    base = _load_mapping(path.parent / name)
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
    data = _load_text(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: expected a mapping, got {_show(data)}"])
    return data


def _load_text(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"{source}:{line}: {', '.join(filter(None, [error.context, error.problem]))}"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"{source}:{line}: {error.reason}"
    except RecursionError:
        problem = f"{source}: nested too deeply"
    raise ConfigError([problem])


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        same_kind = isinstance(value, dict) and isinstance(below, dict) and not _kinds_differ(below, value)
        merged[key] = _merge(below, value) if same_kind else value  # type: ignore[arg-type]
    return merged


def _kinds_differ(below: dict[str, Any], over: dict[str, Any]) -> bool:
    return "kind" in over and "kind" in below and over["kind"] != below["kind"]


def apply_override(data: dict[str, Any], override: str) -> dict[str, Any]:
    """`data` with `override`, written `a.b[1].c=value`, applied; `data` itself stays as it is.

    The value is YAML (`3`, `1e-4`, `[1, 2]`, `{kind: adam, lr: 0.1}`; nothing after the `=` means null).
    Mappings on the way that are missing or null are created; list entries are not. Another `kind` takes the
    fields of the one before with it.

    Raises ConfigError with one line if the override is malformed, an index is out of range, or the path leads
    through something that is neither a mapping nor a list.
    """
    steps, text = _split_override(override)
    return _replace(data, steps, _load_text(text, f"override {override!r}"), "", override)


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
        if not isinstance(node, list):
            raise ConfigError([f"{here} is not a list but {_show(node)}"])
        if step >= len(node):
            raise ConfigError([f"{here} has {len(node)} entries, counted from 0; there is no [{step}]"])
        return [
            *node[:step],
            _replace(node[step], rest, value, f"{path}[{step}]", override),
            *node[step + 1 :],
        ]
    node = {} if node is None else node
    if not isinstance(node, dict):
        raise ConfigError([f"{here} is not a mapping but {_show(node)}"])
    if step == "kind" and not rest and _kinds_differ(node, {"kind": value}):
        return {"kind": value}
    return {**node, step: _replace(node.get(step), rest, value, _join(path, step), override)}


# ---- dataclasses -> plain data -> YAML


def to_plain(instance: Any) -> dict[str, Any]:
    """The mapping from which `parse` makes an equal instance: `kind`, then every field, tuples as lists."""
    plain: dict[str, Any] = {}
    kind = _kind(type(instance))
    if kind is not None:
        plain["kind"] = kind
    for field in dataclasses.fields(instance):
        if field.init:
            plain[field.name] = _plain_value(getattr(instance, field.name))
    return plain


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    assert type(value) in _NAMES, f"{value!r} is not plain data"
    return value


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes a value out each time it occurs: `load_yaml` refuses aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """`mapping` as YAML text in its own order of keys; `load_yaml` reads it back equal."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The paths at which two results of `to_plain` differ.

    Below mappings of different kinds, only `kind` is named; of lists of different lengths, the list.
    """
    return _differences(a, b, "")


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.get("kind") != b.get("kind"):
            return [_join(path, "kind")]
        found = []
        for key in dict.fromkeys([*a, *b]):
            below = _join(path, key)
            found += _differences(a[key], b[key], below) if key in a and key in b else [below]
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [where for index, (x, y) in pairs for where in _differences(x, y, f"{path}[{index}]")]
    # True == 1, but they do not mean the same
    return [] if a == b and isinstance(a, bool) == isinstance(b, bool) else [path]
