"""Frozen dataclasses that cannot hold a wrong value, whether Python or a recipe makes them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, PydanticUserError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from ensemble.config.docstrings import class_doc, field_docs
from ensemble.config.hints import flaw, hint_of, keys
from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse, plain


class Checked:
    """Base of frozen dataclasses whose instances are valid, or are not made.

        @dataclass(frozen=True)
        class Stage(Checked):
            iterations: PositiveInt = 300
            flip: Annotated[float, Field(ge=0, le=1)] = 0.0

            def rules(self) -> Iterator[str]:
                if self.flip and self.iterations == 1:
                    yield "flip: one iteration cannot see both sides"

    The constructor checks and converts as `parse` does: each field against its annotation, with the bounds of
    pydantic's types and `Field`; then `rules`, which a class defines for what holds between its fields. Raises
    ConfigError with a line for each wrong field or broken rule.

    `__post_init__` is this class's own; ValueError where another defines it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__post_init__" in vars(cls):
            raise ValueError(f"{cls.__name__}: define rules() instead of __post_init__, which checks the fields")

    def __post_init__(self) -> None:
        names = keys(type(self))
        valid = parse(type(self), {name: getattr(self, name) for name in names})
        if type(valid) is not type(self):
            raise TypeError(f"{type(self).__name__} is made as one of its kinds")
        for name in names:
            object.__setattr__(self, name, getattr(valid, name))

    def rules(self) -> Iterable[str]:
        """A line for each broken rule between valid fields, as `field: what is wrong` or a sentence."""
        return ()

    # What follows is for this package; its names begin with _ to leave the others to fields.

    @classmethod
    def _class_for(cls, data: Mapping[Any, Any]) -> type[Any] | None:
        """The class of what the mapping describes; None where it names no valid one."""
        return cls

    @classmethod
    def _read(cls, data: Any, read_fields: core_schema.ValidatorFunctionWrapHandler) -> Self:
        """The instance that `data` is or describes; ConfigError where that breaks rules."""
        if isinstance(data, cls):
            return data
        instance: Self = read_fields(data)
        if broken := [*instance.rules()]:
            raise ConfigError(broken)
        return instance

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        _check_definition(cls)
        try:
            schema: Any = {**handler.resolve_ref_schema(handler(source))}
        except PydanticUserError as error:
            raise ValueError(_unreadable_field(cls, handler)) from error
        # It takes mappings, though strict; and `_read` does what is left of __post_init__.
        schema |= {"strict": False, "post_init": False}
        _tell_literals_apart(schema["schema"])
        # Under `ref` pydantic finds the class wherever else it comes up: it is to find this.
        return core_schema.no_info_wrap_validator_function(cls._read, schema, ref=schema.pop("ref"))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        inside = handler.resolve_ref_schema(described)
        if doc := class_doc(cls):
            inside["description"] = doc
        if "properties" in inside:
            _describe_fields(cls, inside["properties"])
        return described


def _check_definition(cls: type[Any]) -> None:
    """ValueError, in one line, where no recipe could hold an instance."""
    parameters = vars(cls).get("__dataclass_params__")  # its own: a base may be a dataclass
    if parameters is None or not parameters.frozen:
        raise ValueError(f"{cls.__name__}: decorate it with @dataclass(frozen=True)")
    if inspect.isabstract(cls):
        raise ValueError(f"{cls.__name__}: define {', '.join(sorted(cls.__abstractmethods__))}")
    for name in keys(cls):
        try:
            problem = flaw(hint_of(cls, name))
        except NameError as error:
            problem = f"{error.name}, in its annotation, is not defined"
        if problem:
            raise ValueError(f"{cls.__name__}.{name}: {problem}")


def _unreadable_field(cls: type[Any], handler: GetCoreSchemaHandler) -> str:
    for field in dataclasses.fields(cls):
        try:
            handler.generate_schema(hint_of(cls, field.name))
        except PydanticUserError:
            return f"{cls.__name__}.{field.name}: {field.type} cannot be read from a recipe"
    return f"{cls.__name__} cannot be read from a recipe"


def _describe_fields(cls: type[Any], properties: dict[str, Any]) -> None:
    docs = field_docs(cls)
    for field in dataclasses.fields(cls):
        described = properties.get(field.name, {})
        if field.name in docs:
            described.setdefault("description", docs[field.name])
        # pydantic's defaults lack `kind`, and it leaves those out that a factory makes
        if field.default is not dataclasses.MISSING:
            described["default"] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            described["default"] = plain(field.default_factory())


def _tell_literals_apart(schema: Any) -> None:
    """Has types compared where a Literal lists numbers: pydantic takes true and 1.0 for 1."""
    if isinstance(schema, list):
        for part in schema:
            _tell_literals_apart(part)
    elif isinstance(schema, dict) and schema.get("type") == "literal":
        literal = {**schema}
        schema.clear()
        schema.update(core_schema.no_info_before_validator_function(_one_of(literal["expected"]), literal))
    elif isinstance(schema, dict):
        _tell_literals_apart([*schema.values()])


def _one_of(expected: list[Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not any(type(value) is type(option) and value == option for option in expected):
            raise PydanticKnownError("literal_error", {"expected": ""})
        return value

    return check
