"""Families of classes that a recipe tells apart by the key `kind`."""

from __future__ import annotations

import inspect
import re
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from ensemble.config.checked import Checked
from ensemble.config.parsing import ADAPTERS, adapter

_families: list[type[Kind]] = []


class Kind(Checked, ABC):
    """Base of the classes that a recipe names by `kind`. A direct subclass is a family, with a table of its own:

        class ImageTerm(Kind): ...
        class Optimizer(Kind, default="adam"): ...          # a mapping without `kind` is of this one

    A class below it enters the table by being defined, and is then among what an annotation with the family, or with
    a class between the two, reads:

        @dataclass(frozen=True)
        class Greyness(ImageTerm, kind="greyness"):
            weight: float = 1.0

    The same class defined anew, as a cell of a notebook that runs again does, takes the place of the one before.

    A class without `kind=` is not registered: one between, or one that only Python makes. Raises ValueError for a
    kind that is taken or no plain word, and when a class is first used that is no frozen dataclass, leaves a method
    abstract or has a field that cannot be read.
    """

    kind: ClassVar[str]
    """Registered classes have it."""
    kinds: ClassVar[dict[str, type[Any]]]
    """The table of the family."""
    _default: ClassVar[str | None]

    def files_read(self) -> Sequence[str]:
        """Paths, as they were written, of the files and folders of pictures whose contents decide what it does."""
        return ()

    def __init_subclass__(cls, kind: str | None = None, default: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        is_family = Kind in cls.__bases__
        if "kind" in vars(cls) or "kind" in inspect.get_annotations(cls):  # with slots, dataclass makes a second class
            raise ValueError(f"{cls.__name__}: its kind is class {cls.__name__}(..., kind='...'); no field, no slots")
        if (default if not is_family else kind) is not None:
            raise ValueError(f"{cls.__name__}: families have a default, the classes below them a kind")
        if is_family:
            cls.kinds, cls._default = {}, default
            _families.append(cls)
        if kind is not None:
            _register(cls, kind)
        ADAPTERS.clear()

    @classmethod
    def _choices(cls) -> dict[str, type[Any]]:
        """The registered classes that a mapping in the place of this one may name, by name: imports have any order."""
        if _is_registered(cls):
            return {cls.kind: cls}
        return {kind: member for kind, member in sorted(cls.kinds.items()) if issubclass(member, cls)}

    @classmethod
    def _kind_of(cls, data: Any) -> Any:
        """What a mapping names, or the default."""
        default = cls.kind if _is_registered(cls) else cls._default
        return data.get("kind", default) if isinstance(data, dict) else None

    @classmethod
    def _class_for(cls, data: Mapping[Any, Any]) -> type[Any] | None:
        kind, choices = cls._kind_of(data), cls._choices()
        return cls if not choices else choices.get(kind) if isinstance(kind, str) else None

    @classmethod
    def _read(cls, data: Any, read_fields: core_schema.ValidatorFunctionWrapHandler) -> Self:
        if isinstance(data, dict) and "kind" in data and _is_registered(cls):
            if data["kind"] != cls.kind:
                raise PydanticKnownError("union_tag_invalid", {"discriminator": "", "tag": "", "expected_tags": ""})
            data = {key: value for key, value in data.items() if key != "kind"}
        return super()._read(data, read_fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = cls._choices()
        if not choices and Kind in cls.__bases__:
            raise ValueError(f"{cls.__name__}: no kind of it is defined")
        if not choices or _is_registered(cls):
            return super().__get_pydantic_core_schema__(source, handler)
        union = core_schema.tagged_union_schema(
            {kind: handler.generate_schema(member) for kind, member in choices.items()}, cls._kind_of
        )
        ref = f"{cls.__module__}.{cls.__qualname__}:{id(cls)}"  # pydantic's own: kinds may hold others of the family

        def read(data: Any, read_kind: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return data if isinstance(data, cls) else read_kind(data)

        return core_schema.no_info_wrap_validator_function(read, union, ref=ref)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = super().__get_pydantic_json_schema__(schema, handler)
        if _is_registered(cls):
            inside = handler.resolve_ref_schema(described)
            is_default = cls.kind == cls._default
            kind = {"const": cls.kind, "type": "string", **({"default": cls.kind} if is_default else {})}
            inside["properties"] = {"kind": kind, **inside.get("properties", {})}
            if not is_default:
                inside["required"] = ["kind", *inside.get("required", [])]
        return described


def _is_registered(cls: type[Kind]) -> bool:
    return "kind" in vars(cls)  # its own: a base may have one


def _register(cls: type[Kind], kind: str) -> None:
    if not re.fullmatch(r"[\w-]+", kind):
        raise ValueError(f"{cls.__name__}: the kind {kind!r} is no word of letters, digits, _ and -")
    other = cls.kinds.get(kind)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.__name__}: the kind {kind!r} is taken by {other.__name__}; choose another")
    cls.kind = kind
    cls.kinds[kind] = cls


@contextmanager
def undone_on_error() -> Iterator[set[str]]:
    """Yields a set, filled at the end with the kinds registered inside, as `Family.kind`; an exception takes all back.

    Raises ValueError where one of them cannot be read, so that it is told where it is defined.
    """
    before = {family: {**family.kinds} for family in _families}
    names: set[str] = set()
    try:
        yield names
        for family in _families:
            for kind in family.kinds.keys() - before.get(family, {}).keys():
                adapter(family.kinds[kind])
                names.add(f"{family.__name__}.{kind}")
    except BaseException:
        for family in _families:
            family.kinds.clear()
            family.kinds.update(before.get(family, {}))
        ADAPTERS.clear()
        raise
