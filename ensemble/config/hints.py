"""What annotations say: which values a field takes, and the words for them."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ensemble.config.mistakes import show

NULL = type(None)
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", NULL: "null"}


def keys(cls: type[Any]) -> list[str]:
    """The names of a dataclass's fields that its constructor takes."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def hint_of(cls: type[Any], name: str) -> Any:
    """The annotation of the field `name`, evaluated in the module that writes it; NameError where that fails."""
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    written = {"__annotations__": {name: inspect.get_annotations(owner)[name]}, "__module__": owner.__module__}
    return typing.get_type_hints(type(owner.__name__, (), written), include_extras=True)[name]


def options(hint: Any) -> list[Any]:
    """The members of the union that `hint` is, or `hint` alone; bounds are taken off."""
    if get_origin(hint) is Annotated:
        return options(get_args(hint)[0])
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def members(hint: Any) -> list[Any]:
    """`options`, those of unions inside included."""
    inside = options(hint)
    return inside if inside == [hint] else [member for option in inside for member in members(option)]


def is_class(hint: Any) -> bool:
    """Whether it is a Checked one, which says of a mapping which class it describes."""
    return hasattr(hint, "_class_for")


def shape(hint: Any) -> type | None:
    """dict for what is written as a mapping, tuple for what is a list, None for a scalar."""
    return dict if is_class(hint) else _shaped(get_origin(hint) or hint)


def shape_of_data(data: object) -> type | None:
    return _shaped(type(data))


def _shaped(cls: Any) -> type | None:
    return cls if cls in (dict, tuple) else None


def flaw(hint: Any) -> str | None:
    """Why no recipe could hold values of this annotation, though pydantic would read them."""
    shapes = [shape(member) for member in members(hint)]
    if max(shapes.count(dict), shapes.count(tuple)) > 1:
        return "a union may have one list and one mapping; classes are told apart in a family of kinds"
    return next(filter(None, map(_flaw, members(hint))), None)


def _flaw(member: Any) -> str | None:
    kind, inside = get_origin(member) or member, get_args(member)
    if kind in (list, set, frozenset) or (kind is tuple and not inside):
        return "lists are tuple[X, ...] here"
    if kind is dict and inside[:1] != (str,):
        return "mappings are dict[str, X] here"
    if dataclasses.is_dataclass(kind) and not is_class(kind):
        return f"{getattr(kind, '__name__', kind)} is no subclass of Checked"
    below = [part for part in inside if part is not ...] if kind in (dict, tuple) else []
    return next(filter(None, map(flaw, below)), None)


def words(hint: Any) -> list[str]:
    """Those of the Literals among the members."""
    literals = [member for member in members(hint) if get_origin(member) is Literal]
    return [word for literal in literals for word in get_args(literal) if isinstance(word, str)]


def describe(hint: Any) -> str:
    """What may stand there, as `an integer, 'auto' or null`."""
    *others, last = dict.fromkeys(map(_describe, sorted(members(hint), key=lambda member: member is NULL)))
    return f"{', '.join(others)} or {last}" if others else last


def _describe(member: Any) -> str:
    if get_origin(member) is Literal:
        values = get_args(member)
        return ("one of " if len(values) > 1 else "") + ", ".join(map(show, values))
    if shape(member):
        return "a mapping" if shape(member) is dict else "a list"
    if get_origin(member) is collections.abc.Callable:
        return "a function"
    return _NAMES.get(member) or f"a value of type {getattr(member, '__name__', member)}"
