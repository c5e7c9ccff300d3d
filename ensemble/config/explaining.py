"""What pydantic finds wrong, in our words: a line for each mistake, with its path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ensemble.config.hints import NULL, describe, hint_of, is_class, keys, members, options, shape, shape_of_data, words
from ensemble.config.mistakes import ConfigError, at, did_you_mean, join, nearest, show

_Loc = tuple[int | str, ...]

_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
    "multiple_of": "a multiple of",
}
_LENGTHS = {
    "too_short": ("at least", "min_length", "entry", "entries"),
    "too_long": ("at most", "max_length", "entry", "entries"),
    "string_too_short": ("at least", "min_length", "character", "characters"),
    "string_too_long": ("at most", "max_length", "character", "characters"),
}


PLUGINS = "a plugin's comes with --plugin FILE, in Python by ensemble.load_plugin(FILE)"


def explain(error: ValidationError, hint: Any, data: object, path: str) -> list[str]:
    """The lines for all that `error` found where `data` was read as `hint`; paths begin with `path`."""
    mistakes = [_located(details, hint, data) for details in error.errors(include_url=False)]
    told = [mistake for mistake in mistakes if not any(map(mistake.is_told_by, mistakes))]
    return list(dict.fromkeys(line for mistake in told for line in _lines(mistake, path)))


@dataclass(frozen=True)
class _Mistake:
    type: str
    """pydantic's word for it."""
    steps: _Loc
    """Keys and indices that lead to the value, or to the mapping that lacks `key` or should not have it."""
    hint: Any
    data: Any
    """What stands there; None where a default is wrong."""
    key: Any
    details: ErrorDetails

    @property
    def value(self) -> Any:
        """What is wrong: `data`, the default, a key that is no string, or what stands under an unknown key."""
        return self.details["input"]

    @property
    def is_of_type(self) -> bool:
        """Whether the value is of another type than any that may stand there."""
        if self.type == "union_tag_not_found":
            return not isinstance(self.value, dict)
        return self.type.endswith("_type") or self.type in ("literal_error", "finite_number", "is_instance_of")

    @property
    def is_short(self) -> bool:
        """Whether a list has too few entries only because wrong ones do not count."""
        return self.type == "too_short" and len(self.value) >= self.details["ctx"]["min_length"]

    def is_told_by(self, other: _Mistake) -> bool:
        """Whether `other` says it: what is wrong in the member of a union that was meant, or in the list."""
        below = len(other.steps) > len(self.steps) and other.steps[: len(self.steps)] == self.steps
        beside = other.steps == self.steps and not other.is_of_type
        return ((self.is_of_type or self.is_short) and below) or (self.is_of_type and beside)


# ---- where


def _located(details: ErrorDetails, hint: Any, data: object) -> _Mistake:
    name, loc, key = details["type"], details["loc"], None
    if name in ("missing", "unexpected_keyword_argument", "invalid_key"):
        loc, key = loc[:-1], loc[-1]
    elif loc[-1:] == ("[key]",) and not isinstance(details["input"], str):
        name, loc = "invalid_key", loc[:-2]
    return _Mistake(name, *_find(hint, data, loc), key, details)


def _find(hint: Any, data: Any, loc: _Loc) -> tuple[_Loc, Any, Any]:
    """What `loc` leads to: its steps, without pydantic's labels for members of unions; the annotation; the value."""
    member, loc = _member(hint, data, loc)
    if shape(member) is None or shape(member) is not shape_of_data(data):
        return (), hint, data
    if is_class(member) and member._class_for(data) is not member:
        loc = loc[1:]  # the kind
    if not loc:
        return (), hint, data
    step: Any = loc[0]
    below = data.get(step) if isinstance(data, dict) else data[step]
    steps, hint, data = _find(_hint_below(member, data, step), below, loc[1:])
    return (step, *steps), hint, data


def _member(hint: Any, data: object, loc: _Loc = ()) -> tuple[Any, _Loc]:
    """The member of the union `hint` that has the shape of `data`, and `loc` without the label for it."""
    while (inside := [option for option in options(hint) if option is not NULL] or [hint]) != [hint]:
        loc = loc[1:] if len(inside) > 1 else loc  # pydantic counts null apart
        fitting = [option for option in inside if shape_of_data(data) in map(shape, members(option))]
        hint = [*fitting, *inside][0]
    return hint, loc


def _hint_below(member: Any, data: Any, step: Any) -> Any:
    if is_class(member):
        return hint_of(member._class_for(data), step)
    if shape(member) is dict:
        return get_args(member)[1]
    items = get_args(member)
    return items[0] if items[-1] is ... else items[step]


# ---- words


def _key_that_was_meant(mistake: _Mistake) -> str:
    """One that is spelled like it, one of that name further down, or all that there are."""
    valid = _keys(mistake)
    deeper = [] if did_you_mean(mistake.key, valid) else sorted(_below_fields(mistake), key=lambda path: "[" in path)
    return f"did you mean {' or '.join(map(repr, deeper[:2]))}?" if deeper else nearest(mistake.key, valid, "keys")


def _below_fields(mistake: _Mistake) -> Iterator[str]:
    """Where what is described one level down has a field of that name; of what is not described, the default has."""
    member, _ = _member(mistake.hint, mistake.data)
    cls = member._class_for(mistake.data) if is_class(member) else None
    if cls is None:
        return
    for field in keys(cls):
        given = mistake.data.get(field)
        for option in members(hint_of(cls, field)):
            inner, items = option, {"": given}
            if shape(option) is tuple:
                entries = given if isinstance(given, list) else [None]
                inner, items = get_args(option)[0], {f"[{i}]": item for i, item in enumerate(entries)}
            for below in filter(is_class, members(inner)):
                described = {step: below._class_for(item or {}) for step, item in items.items() if _fits(item)}
                steps = (step for step, one in described.items() if one is not None and mistake.key in keys(one))
                yield from (f"{field}{step}.{mistake.key}" for step in islice(steps, 1))


def _fits(data: object) -> bool:
    return data is None or isinstance(data, dict)


def _lines(mistake: _Mistake, path: str) -> list[str]:
    for step in mistake.steps:
        path = join(path, step) if isinstance(step, str) else f"{path}[{step}]"
    match mistake.type:
        case "missing" if isinstance(mistake.key, str):
            return [f"{join(path, mistake.key)}: missing"]
        case "unexpected_keyword_argument":
            return [f"{join(path, mistake.key)}: unknown key; {_key_that_was_meant(mistake)}"]
        case "invalid_key":
            return [at(path, f"the key {show(mistake.value)} is not a string; put it in quotes")]
        case "union_tag_not_found" | "union_tag_invalid" if not mistake.is_of_type:
            return [f"{join(path, 'kind')}: {_about_kind(mistake)}"]
        case "value_error":
            error = mistake.details["ctx"]["error"]
            broken = error.problems if isinstance(error, ConfigError) else [str(error)]
            return [_below(path, line, _keys(mistake)) for line in broken]
        case "assertion_error":  # a mistake of ours, not of the user
            raise mistake.details["ctx"]["error"]
    return [at(path, _about_value(mistake))]


def _keys(mistake: _Mistake) -> list[str]:
    """Those that the mapping may have, where the mistake is about one."""
    member, _ = _member(mistake.hint, mistake.data)
    if not (is_class(member) and isinstance(mistake.data, dict)):
        return []
    cls = member._class_for(mistake.data)
    return [*(["kind"] if hasattr(cls, "kinds") else []), *keys(cls)]


def _below(path: str, line: str, names: Collection[str]) -> str:
    """A rule's line with its path, which goes on in the line if that begins with one of `names` and a colon."""
    field = re.match(r"(\w+)[\w.\[\]'-]*: ", line)
    return f"{path}.{line}" if path and field and field[1] in names else at(path, line)


def _about_kind(mistake: _Mistake) -> str:
    family = _member(mistake.hint, mistake.value)[0]
    kinds = list(family._choices())
    if "kind" not in mistake.value:
        return f"missing; valid kinds: {', '.join(kinds)}"
    kind = mistake.value["kind"]
    if near := did_you_mean(kind, kinds):
        return f"unknown kind {show(kind)}; {near}"
    elsewhere = f"; {PLUGINS}" if isinstance(kind, str) else ""
    nameless = "".join(f"; class {name} has no kind: class {name}(.., kind=..)" for name in _nameless(family))
    return f"unknown kind {show(kind)}; {nearest(kind, kinds, 'kinds')}{nameless or elsewhere}"


def _nameless(family: type[Any]) -> Iterator[str]:
    """Classes of others than this project that no recipe can name."""
    for cls in family.__subclasses__():
        yield from _nameless(cls)
        ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        is_base = bool(cls.__subclasses__()) or inspect.isabstract(cls)
        if not ours and not is_base and "kind" not in vars(cls):
            yield cls.__name__


def _about_value(mistake: _Mistake) -> str:
    value, bounds = mistake.value, mistake.details.get("ctx", {})
    items = get_args(_member(mistake.hint, mistake.data)[0])
    if mistake.type in ("missing", "too_long") and ... not in items:
        return f"expected a list of {len(items)}, got {len(value)}"
    if mistake.type in _LENGTHS:
        limit, name, one, many = _LENGTHS[mistake.type]
        text = f"must have {limit} {bounds[name]} {one if bounds[name] == 1 else many}"
        return f"{text}, got {len(value)}" if value else text
    if mistake.type in _BOUNDS:
        return f"must be {_bound(mistake)}, got {show(value)}"
    if mistake.is_of_type:
        return _expected(mistake.hint, value)
    text = mistake.details["msg"]
    return f"{text[0].lower()}{text[1:]}, got {show(value)}"


def _bound(mistake: _Mistake) -> str:
    ((_, bound),) = mistake.details["ctx"].items()
    if isinstance(bound, float) and bound.is_integer():
        bound = int(bound)
    whole = isinstance(bound, int) and int in members(mistake.hint) and float not in members(mistake.hint)
    match mistake.type:
        case "greater_than" if whole:
            return f"at least {bound + 1}"
        case "less_than" if whole:
            return f"at most {bound - 1}"
        case "greater_than" if bound == 0:
            return "positive"
    return f"{_BOUNDS[mistake.type]} {show(bound)}"


def _expected(hint: Any, value: object) -> str:
    """What may stand there, with the nearest word or a remedy if there is one."""
    message = f"expected {describe(hint)}, got {show(value)}"
    if close := did_you_mean(value, words(hint)):
        return f"{message}; {close}"
    if (words(hint) or str in members(hint)) and not isinstance(value, str | dict | tuple | None):
        # YAML 1.1 reads off, no and 2026-01-31 as something else than strings
        message += "; put it in quotes"
    return message
