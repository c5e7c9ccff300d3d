"""Plain data, as YAML holds it, to instances of Checked classes and back.

Paths look like `objectives[1].weight`; a key that is not a plain word is written `weights['layer1.0']`.
The paths in messages, in `differences` and in overrides are the same.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaError

from ensemble.config.explaining import explain
from ensemble.config.hints import hint_of, is_class, keys
from ensemble.config.mistakes import ConfigError

T = TypeVar("T")

_SCALARS = (int, float, bool, str, type(None))


ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}
"""pydantic's readers, each made when it is first needed; a change in the tables of kinds clears them."""


def adapter(cls: type[T]) -> TypeAdapter[T]:
    """pydantic's reader of a Checked class; ValueError, in one line, where its definition cannot be read."""
    assert is_class(cls), f"{cls} is no subclass of Checked"
    try:
        return ADAPTERS.get(cls) or ADAPTERS.setdefault(cls, TypeAdapter(cls))
    except SchemaError as error:  # such as a bound that is no number
        raise ValueError(f"{_misdefined(cls)}: {' '.join(str(error).split())}") from error


def _misdefined(cls: type[Any]) -> str:
    for name in keys(cls):
        try:
            TypeAdapter(hint_of(cls, name))
        except SchemaError:
            return f"{cls.__name__}.{name}"
    return cls.__name__


def parse(cls: type[T], data: object, path: str = "") -> T:
    """The instance of the Checked class `cls`, or of one of its kinds, that the mapping `data` describes.

    Lists stand for tuples and mappings for Checked classes; an instance of one may stand in the place of its
    mapping. Types are strict: an int is no bool and not 3.0, a float may be written as an int but is finite, what
    a Literal lists counts by type as well. A missing key takes the field's default, a missing `kind` the family's.

    Raises ConfigError with all problems, each as `path: what is wrong`, the paths beginning with `path`. The rules
    between fields are among them, of an object whose fields are all valid.
    """
    data = _with_tuples(data)
    try:
        return adapter(cls).validate_python(data)
    except ValidationError as error:
        raise ConfigError(explain(error, cls, data, path)) from None


def _with_tuples(data: Any) -> Any:
    """Lists as tuples: to pydantic's strict mode, they differ."""
    if isinstance(data, dict):
        return {key: _with_tuples(value) for key, value in data.items()}
    return tuple(map(_with_tuples, data)) if isinstance(data, list | tuple) else data


def to_plain(instance: Any) -> dict[str, Any]:
    """The mapping from which `parse` makes an equal instance: `kind`, then every field, tuples as lists.

    Raises ValueError for an instance of a family's class that has no kind, which no mapping can name.
    """
    cls = type(instance)
    if hasattr(cls, "kinds") and "kind" not in vars(cls):
        raise ValueError(f"{cls.__name__} cannot be written down: it has no kind; give it one, kind='...'")
    kind = {"kind": cls.kind} if hasattr(cls, "kinds") else {}
    return {**kind, **{key: plain(getattr(instance, key)) for key in keys(cls)}}


def plain(value: Any) -> Any:
    """A field's value as `to_plain` has it."""
    if is_class(type(value)):
        return to_plain(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    assert type(value) in _SCALARS, f"{value!r} is not plain data"
    return value
