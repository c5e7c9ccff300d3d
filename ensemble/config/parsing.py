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
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from ensemble.config.mistakes import ConfigError, at, join, nearest, show

T = TypeVar("T")

_INVALID: Any = object()
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}


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
        kind_path = join(path, "kind")
        if "kind" in data:
            kind = data["kind"]
            if not isinstance(kind, str) or kind not in kinds:
                problems.append(f"{kind_path}: unknown kind {show(kind)}; {nearest(kind, kinds, 'kinds')}")
                return _INVALID
            cls = kinds[kind]
        elif len(classes) > 1:
            problems.append(f"{kind_path}: missing; valid kinds: {', '.join(map(str, kinds))}")
            return _INVALID

    fields = [field for field in dataclasses.fields(cls) if field.init]
    names += [field.name for field in fields]
    for key in data:
        if not isinstance(key, str):
            problems.append(at(path, f"the key {show(key)} is not a string; put it in quotes"))
        elif key not in names:
            problems.append(f"{join(path, key)}: unknown key; {nearest(key, names, 'keys')}")

    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    valid = True
    for field in fields:
        if field.name in data:
            value = _value(hints[field.name], data[field.name], join(path, field.name), problems)
            values[field.name] = value
            valid = valid and value is not _INVALID
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{join(path, field.name)}: missing")
            valid = False
    if not valid:
        return _INVALID
    try:
        return cls(**values)
    except ValueError as error:
        messages = error.problems if isinstance(error, ConfigError) else [str(error)]
        problems.extend(at(path, message) for message in messages)
        return _INVALID


def _tuple(hint: Any, data: object, path: str, problems: list[str]) -> Any:
    if not isinstance(data, list):
        problems.append(_expected([hint], data, path))
        return _INVALID
    hints = get_args(hint)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(data)
    elif len(hints) != len(data):
        problems.append(at(path, f"expected a list of {len(hints)}, got {len(data)}"))
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
            values[key] = _value(value_hint, item, join(path, key), problems)
        else:
            problems.append(at(path, f"the key {show(key)} is not a string; put it in quotes"))
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
    message = f"expected {' or '.join(dict.fromkeys(map(_describe, hints)))}, got {show(data)}"
    words = [option for hint in hints if get_origin(hint) is Literal for option in get_args(hint)]
    words = [word for word in words if isinstance(word, str)]
    if isinstance(data, str):
        if close := difflib.get_close_matches(data, words, n=1):
            message += f"; did you mean '{close[0]}'?"
    elif (words or str in hints) and data is not None and _shape_of_data(data) is None:
        # YAML 1.1 reads off, no and 2026-01-31 as something else than strings
        message += "; put it in quotes"
    return at(path, message)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        options = get_args(hint)
        return ("one of " if len(options) > 1 else "") + ", ".join(map(show, options))
    shape = _shape_of_hint(hint)
    if shape is None:
        return _NAMES[hint]
    return "a mapping" if shape is dict else "a list"


# ---- YAML -> plain data


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
