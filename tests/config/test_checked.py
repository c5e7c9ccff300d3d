"""Instances made in Python are checked as those of a recipe, and bad definitions are told in one line."""

from __future__ import annotations

import dataclasses
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from config_examples import Adam, Double, Lbfgs, Plain, Run, Term
from pydantic import Field, InstanceOf, PositiveFloat

from ensemble.config import checked
from ensemble.config.checked import Checked
from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse


def problems(make: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make()
    return caught.value.problems


def test_values_are_converted_as_by_parse() -> None:
    made = Run(1, Adam(1), clip=2, terms=[Term(3)], targets=[1, "a"], by_layer={"a": 1}, size=2)  # type: ignore[arg-type]
    assert made == parse(
        Run,
        {
            "seed": 1,
            "optimizer": {"kind": "adam", "lr": 1},
            "clip": 2,
            "terms": [{"weight": 3}],
            "targets": [1, "a"],
            "by_layer": {"a": 1},
            "size": 2,
        },
    )
    values = made.clip, made.terms[0].weight, made.by_layer["a"], made.size
    assert values == (2.0, 3.0, 1.0, 2) and list(map(type, values)) == [float, float, float, int]
    assert type(made.terms) is type(made.targets) is tuple


def test_mappings_stand_for_instances() -> None:
    assert Run(1, {"kind": "lbfgs"}, norm={"kind": "double"}) == Run(1, Lbfgs(), norm=Double())  # type: ignore[arg-type]


def test_instances_are_taken_as_they_are() -> None:
    adam, term = Adam(1.0), Term()
    made = Run(1, adam, terms=(term,))
    assert made.optimizer is adam and made.terms[0] is term


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (lambda: Adam(-1), ["lr: must be positive, got -1"]),
        (lambda: Adam("a", (1, True)), ["lr: expected a number, got 'a'", "betas[1]: expected a number, got true"]),
        (lambda: Adam(1, 3), ["betas: expected a list, got 3"]),
        (lambda: Lbfgs(0, 1), ["history: must be at least 1, got 0", "line_search: expected true or false, got 1"]),
        (lambda: Lbfgs(101, False), ["history: more than 100 needs a line search"]),
        (lambda: Term(layers="a"), ["layers: expected a list, got 'a'"]),
        (lambda: Double(inner={"scael": 1}), ["inner.scael: unknown key; did you mean 'scale'?"]),
        (lambda: Double(inner=Adam(1)), ["inner: expected a mapping, got Adam(lr=1.0, betas=(0.9, 0.999))"]),
        (lambda: Run(-1, Adam(1), name="nameless"), ["seed: must be at least 0, got -1", "call it something else"]),
    ],
)
def test_mistakes_have_the_words_of_parse(make: Callable[[], object], lines: list[str]) -> None:
    assert problems(make) == lines


def test_replacing_a_field_checks_again() -> None:
    with pytest.raises(ConfigError, match="scale: expected a number"):
        dataclasses.replace(Plain(1.0), scale="x")
    assert dataclasses.replace(Plain(1.0), scale=2) == Plain(2.0)


def test_instances_survive_pickling() -> None:
    made = Run(1, Adam(1), terms=(Term(),))
    assert pickle.loads(pickle.dumps(made)) == made


@dataclass(frozen=True)
class Counted(Checked):
    made: Annotated[tuple[Plain, ...], Field(max_length=9)] = ()
    checks = 0

    def rules(self) -> Iterator[str]:
        Counted.checks += 1
        yield from ()


@dataclass(frozen=True)
class Holder(Checked):
    one: Counted = Counted()
    two: Counted | None = None


def test_each_object_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Counted.checks = 0
    parse(Holder, {"one": {}, "two": {"made": []}})
    assert Counted.checks == 2
    Holder(one=Counted(), two=Counted())
    assert Counted.checks == 4
    parses: list[object] = []
    monkeypatch.setattr(checked, "parse", lambda cls, data: parses.append(cls) or parse(cls, data))
    parse(Holder, {"one": {}, "two": {"made": [{}, {}]}})
    assert parses == []


@dataclass(frozen=True)
class Strict(Checked):
    """With a default that is none, and a rule that fails."""

    weight: PositiveFloat = -1.0
    note: str = ""

    def rules(self) -> Iterator[str]:
        assert self.note != "assert"
        if self.note == "value":
            raise ValueError("no such note")
        yield from ()


def test_defaults_are_checked() -> None:
    assert problems(lambda: parse(Strict, {}, "s")) == ["s.weight: must be positive, got -1.0"]
    assert problems(Strict) == ["weight: must be positive, got -1.0"]


def test_what_a_rule_raises() -> None:
    assert problems(lambda: parse(Strict, {"weight": 1, "note": "value"}, "s")) == ["s: no such note"]
    with pytest.raises(AssertionError):
        parse(Strict, {"weight": 1, "note": "assert"})


@dataclass(frozen=True)
class InMemory(Checked):
    function: Callable[[int], int]
    thing: InstanceOf[complex] = 1j


def test_what_only_python_can_give() -> None:
    assert InMemory(abs).function is abs
    assert problems(lambda: InMemory(3, 2)) == [  # type: ignore[arg-type]
        "function: expected a function, got 3",
        "thing: expected a value of type complex, got 2",
    ]


# ---- definitions


class Undecorated(Checked):
    weight: float = 1.0


@dataclass
class NotFrozen(Checked):
    weight: float = 1.0


class Inherits(Term):
    other: int = 1


@dataclass(frozen=True)
class Undefined(Checked):
    fine: int = 1
    weight: Missing = 1.0  # type: ignore[name-defined]  # noqa: F821


class Odd:
    pass


@dataclass(frozen=True)
class Unreadable(Checked):
    fine: int = 1
    odd: tuple[Odd, ...] = ()


@dataclass(frozen=True)
class Holds(Checked):
    inner: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class List(Checked):
    weights: list[int] | None = None


@dataclass(frozen=True)
class BareTuple(Checked):
    weights: tuple = ()  # type: ignore[type-arg]


@dataclass(frozen=True)
class IntKeys(Checked):
    weights: dict[int, int] | None = None


@dataclass(frozen=True)
class Alike(Checked):
    which: tuple[Term | Plain, ...] = ()


@dataclass(frozen=True)
class Foreign:
    weight: float = 1.0


@dataclass(frozen=True)
class HoldsForeign(Checked):
    inner: dict[str, Foreign] | None = None


@dataclass(frozen=True)
class BadBound(Checked):
    fine: int = 1
    weight: Annotated[float, Field(gt="a")] = 1.0  # type: ignore[arg-type]


@dataclass(frozen=True)
class Abstract(Checked, ABC):
    @abstractmethod
    def make(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "line"),
    [
        (Undecorated, "Undecorated: decorate it with @dataclass(frozen=True)"),
        (NotFrozen, "NotFrozen: decorate it with @dataclass(frozen=True)"),
        (Inherits, "Inherits: decorate it with @dataclass(frozen=True)"),
        (Undefined, "Undefined.weight: Missing, in its annotation, is not defined"),
        (Unreadable, "Unreadable.odd: tuple[Odd, ...] cannot be read from a recipe"),
        (Holds, "Unreadable.odd: tuple[Odd, ...] cannot be read from a recipe"),
        (List, "List.weights: lists are tuple[X, ...] here"),
        (BareTuple, "BareTuple.weights: lists are tuple[X, ...] here"),
        (IntKeys, "IntKeys.weights: mappings are dict[str, X] here"),
        (Alike, "Alike.which: a union may have one list and one mapping; classes are told apart in a family of kinds"),
        (HoldsForeign, "HoldsForeign.inner: Foreign is no subclass of Checked"),
        (Abstract, "Abstract: define make"),
    ],
)
def test_definitions_that_are_refused(cls: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(cls, {})
    assert str(caught.value) == line


def test_a_bound_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"^BadBound\.weight: .*must be real number[^\n]*$"):
        parse(BadBound, {})


def test_an_undecorated_class_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="Inherits: decorate it"):
        Inherits()


def test_post_init_is_taken() -> None:
    with pytest.raises(ValueError, match=r"Own: define rules\(\) instead of __post_init__"):

        class Own(Checked):
            def __post_init__(self) -> None: ...
