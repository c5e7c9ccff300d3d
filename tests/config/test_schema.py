"""The JSON schema: it says of configurations what `parse` says, rules aside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from config_examples import Adam, Double, Lbfgs, Optimizer, Plain, Run, Term, run

from ensemble.config.checked import Checked
from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse, to_plain
from ensemble.config.schema import json_schema

SCHEMA = json_schema(Run)


def test_dialect_and_that_it_is_json() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_descriptions_are_docstrings() -> None:
    assert SCHEMA["description"] == "One run."
    assert SCHEMA["properties"]["name"]["description"] == "Of its folder."
    definitions = SCHEMA["$defs"]
    assert definitions["Optimizer"]["description"] == "How parameters are stepped."
    assert definitions["Adam"]["description"] == "Adam (Kingma & Ba 2015)."
    assert definitions["Adam"]["properties"]["lr"]["description"] == "The step."
    assert "description" not in definitions["Lbfgs"] and "description" not in definitions["Term"]


@dataclass(frozen=True)
class Base(Checked):
    weight: float = 1.0
    """In units
    of the loss."""


@dataclass(frozen=True)
class Derived(Base):
    other: float = 1.0

    def method(self) -> None:
        hidden: int = 1
        """Not a field."""
        del hidden


def test_fields_of_a_base_keep_their_descriptions() -> None:
    properties = json_schema(Derived)["properties"]
    assert properties["weight"]["description"] == "In units\nof the loss."
    assert "description" not in properties["other"]


def test_a_class_without_source_has_no_descriptions() -> None:
    names: dict[str, Any] = {"Checked": Checked, "dataclass": dataclass, "__name__": __name__}
    exec("@dataclass(frozen=True)\nclass Made(Checked):\n    made: int = 1\n    'A field.'", names)
    assert json_schema(names["Made"])["properties"] == {"made": {"default": 1, "title": "Made", "type": "integer"}}


def test_defaults_are_as_in_a_recipe() -> None:
    properties = SCHEMA["properties"]
    assert SCHEMA["required"] == ["seed", "optimizer"]
    assert properties["batch"]["default"] == "auto" and properties["clip"]["default"] is None
    assert properties["by_layer"]["default"] == {} and properties["names"]["default"] == ["a"]
    assert SCHEMA["$defs"]["Double"]["properties"]["outer"]["default"] == {"kind": "plain", "scale": 2.0}


def test_kinds() -> None:
    definitions = SCHEMA["$defs"]
    assert definitions["Optimizer"]["oneOf"] == [{"$ref": "#/$defs/Adam"}, {"$ref": "#/$defs/Lbfgs"}]
    assert definitions["Adam"]["properties"]["kind"] == {"const": "adam", "type": "string"}
    assert definitions["Adam"]["required"] == ["kind", "lr"] and definitions["Lbfgs"]["required"] == ["kind"]
    assert definitions["Plain"]["properties"]["kind"] == {"const": "plain", "type": "string", "default": "plain"}
    assert "required" not in definitions["Plain"] and definitions["Double"]["required"] == ["kind"]
    assert list(definitions["Adam"]["properties"]) == ["kind", "lr", "betas"]


def test_nothing_else_may_be_said() -> None:
    objects = [SCHEMA, *(part for part in SCHEMA["$defs"].values() if "oneOf" not in part)]
    assert len(objects) == 6 and all(part["additionalProperties"] is False for part in objects)


def test_bounds() -> None:
    properties = SCHEMA["properties"]
    assert (properties["share"]["minimum"], properties["share"]["maximum"]) == (0, 1)
    assert (properties["below"]["exclusiveMinimum"], properties["below"]["exclusiveMaximum"]) == (-1.5, 1)
    assert properties["steps"]["multipleOf"] == 2 and properties["names"]["minItems"] == 1
    assert properties["level"]["enum"] == [1, 2]


def accepts(schema: dict[str, Any], data: Any) -> bool:
    """Whether `data` is as `schema` says, of the words that such schemas use."""
    if "$ref" in schema:
        return accepts(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], data)
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    number = isinstance(data, int | float) and not isinstance(data, bool)
    kinds = {"number": number, "integer": number and data == int(data)}
    checks = {
        "type": lambda word: kinds[word] if word in kinds else isinstance(data, types[word]),
        "const": lambda value: data == value,
        "enum": lambda values: data in values,
        "anyOf": lambda parts: any(accepts(part, data) for part in parts),
        "oneOf": lambda parts: sum(accepts(part, data) for part in parts) == 1,
        "minimum": lambda bound: data >= bound,
        "maximum": lambda bound: data <= bound,
        "exclusiveMinimum": lambda bound: data > bound,
        "exclusiveMaximum": lambda bound: data < bound,
        "multipleOf": lambda step: data % step == 0,
        "minLength": lambda least: len(data) >= least,
        "maxLength": lambda most: len(data) <= most,
        "minItems": lambda least: len(data) >= least,
        "maxItems": lambda most: len(data) <= most,
        "prefixItems": lambda parts: all(map(accepts, parts, data)),
        "items": lambda part: all(accepts(part, item) for item in data),
        "required": lambda names: all(name in data for name in names),
        "properties": lambda parts: all(accepts(parts[key], data[key]) for key in parts.keys() & data.keys()),
        "additionalProperties": lambda part: all(
            part and accepts(part, value) for key, value in data.items() if key not in schema.get("properties", {})
        ),
    }
    said = {"$schema", "$defs", "title", "description", "default"}
    assert schema.keys() <= checks.keys() | said, schema.keys() - checks.keys() - said
    words = sorted(schema.keys() - said, key=lambda word: word != "type")  # the other words follow from the type
    return all(checks[word](schema[word]) for word in words)


@pytest.mark.parametrize(
    "instance",
    [
        Run(1, Adam(1e-5)),
        Run(2, Lbfgs(3, False), targets=(1, "2"), batch=None, clip=0.5, level=2),
        Run(3, Lbfgs(), norm=Double(Double()), plain=Plain(), terms=(Term(), Term(2.0, ("a",))), by_layer={"a": 1.0}),
    ],
)
def test_what_is_written_down_is_accepted(instance: Run) -> None:
    assert accepts(SCHEMA, to_plain(instance))


@pytest.mark.parametrize(
    "data",
    [
        run(),
        run(norm={}),
        run(norm={"scale": 2}),
        run(norm={"kind": "double", "inner": {}}),
        run(seed="1"),
        run(seed=True),
        run(sede=1),
        run(optimizer={"lr": 1}),
        run(optimizer={"kind": "adam"}),
        run(optimizer={"kind": "adam", "lr": -1}),
        run(optimizer={"kind": "adam", "lr": 1, "betas": [1]}),
        run(optimizer={"kind": "adma", "lr": 1}),
        run(optimizer={"kind": "lbfgs", "lr": 1}),
        run(norm={"kind": "double", "scale": 1}),
        run(norm={"inner": {}}),
        run(plain={"kind": "double"}),
        run(terms=[{"weight": "x"}]),
        run(by_layer={"a": "x"}),
        run(targets=[1, 2.5]),
        run(names=[]),
        run(devices=["a"]),
        run(share=2),
        run(steps=3),
        run(precision="fp8"),
        {"seed": 1},
    ],
)
def test_it_accepts_what_parse_accepts(data: dict[str, Any]) -> None:
    try:
        parse(Run, data)
    except ConfigError:
        assert not accepts(SCHEMA, data)
    else:
        assert accepts(SCHEMA, data)


def test_a_family_has_a_schema() -> None:
    schema = json_schema(Optimizer)
    assert schema["description"] == "How parameters are stepped." and len(schema["oneOf"]) == 2
