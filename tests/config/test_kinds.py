"""Families: who is registered under which word, what is refused, and what is taken back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ensemble.config.checked import Checked
from ensemble.config.kinds import Kind, undone_on_error
from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse, to_plain


class Shape(Kind):
    """With two classes between the family and its kinds, and fields of its own."""

    @property
    def name(self) -> str:
        return getattr(self, "kind", type(self).__name__)


@dataclass(frozen=True)
class Round(Shape):
    radius: float = 1.0


class Angular(Shape):
    @abstractmethod
    def corners(self) -> int: ...


@dataclass(frozen=True)
class Circle(Round, kind="circle"):
    colour: str = "red"


@dataclass(frozen=True)
class Square(Angular, kind="square-1"):
    def corners(self) -> int:
        return 4


@dataclass(frozen=True)
class Group(Shape, kind="group"):
    members: tuple[Shape, ...] = ()
    hole: Round | None = None


@dataclass(frozen=True)
class Unregistered(Shape):
    weight: float = 1.0


@dataclass(frozen=True)
class Drawing(Checked):
    shapes: tuple[Shape, ...] = ()
    round: Round = Circle()


class Colour(Kind, default="red"):
    pass


@dataclass(frozen=True)
class Red(Colour, kind="red"):
    depth: float = 1.0


@dataclass(frozen=True)
class Circular(Colour, kind="circle"):
    """The word is another family's too."""


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    class Undo(BaseException):
        """Not an error of anybody's."""

    with pytest.raises(Undo), undone_on_error():
        yield
        raise Undo


def problems(data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(Drawing, data)
    return caught.value.problems


def test_defined_is_registered() -> None:
    assert Shape.kinds == {"circle": Circle, "square-1": Square, "group": Group}
    assert Round.kinds is Shape.kinds and Circle.kind == "circle"
    assert Colour.kinds == {"red": Red, "circle": Circular}
    assert not hasattr(Shape, "kind") and not hasattr(Unregistered, "kind")


def test_a_class_between_reads_its_own_kinds() -> None:
    assert parse(Drawing, {"round": {"kind": "circle", "radius": 2}}).round == Circle(2.0)
    assert problems({"round": {"kind": "square-1"}}) == [
        "round.kind: unknown kind 'square-1'; valid kinds: circle; a plugin's comes with --plugin FILE, in Python by "
        "ensemble.load_plugin(FILE)"
    ]
    assert problems({"round": {}}) == ["round.kind: missing; valid kinds: circle"]


def test_kinds_may_hold_kinds_of_their_family() -> None:
    data = {"shapes": [{"kind": "group", "members": [{"kind": "group", "members": [{"kind": "circle"}]}]}]}
    assert parse(Drawing, data) == Drawing((Group((Group((Circle(),)),)),))
    data["shapes"][0]["members"] = [{"kind": "group", "members": [{"kind": "circle", "radius": "x"}], "hole": 3}]
    assert problems(data) == [
        "shapes[0].members[0].members[0].radius: expected a number, got 'x'",
        "shapes[0].members[0].hole: expected a mapping or null, got 3",
    ]


def test_a_kind_defined_later_is_known() -> None:
    assert problems({"shapes": [{"kind": "star"}]}) == [
        "shapes[0].kind: unknown kind 'star'; valid kinds: circle, group, square-1; "
        "class Unregistered has no kind: class Unregistered(.., kind=..)"
    ]

    @dataclass(frozen=True)
    class Star(Angular, kind="star"):
        points: int = 5

        def corners(self) -> int:
            return 2 * self.points

    assert parse(Drawing, {"shapes": [{"kind": "star"}]}).shapes == (Star(),)
    assert Drawing(shapes=(Star(6),)).shapes[0].name == "star"


def test_an_unregistered_class_is_for_python_alone() -> None:
    made = Drawing((Unregistered(2),))  # type: ignore[arg-type]
    assert made.shapes == (Unregistered(2.0),) and made.shapes[0].name == "Unregistered"
    assert parse(Drawing, {"shapes": [Unregistered()]}).shapes == (Unregistered(),)
    with pytest.raises(ConfigError, match="weight: expected a number, got 'x'"):
        Unregistered("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unregistered cannot be written down: it has no kind"):
        to_plain(made)


def test_below_a_registered_class_one_is_not_of_its_kind() -> None:
    @dataclass(frozen=True)
    class Disc(Circle):
        pass

    with pytest.raises(ValueError, match="Disc cannot be written down"):
        to_plain(Disc())
    assert parse(Drawing, {"round": {"kind": "circle"}}).round == Circle()


def test_families_and_abstract_classes_are_not_made() -> None:
    with pytest.raises(ConfigError, match="kind: missing; valid kinds: circle"):
        Round()
    with pytest.raises(TypeError, match="abstract"):
        Angular()  # type: ignore[abstract]

    @dataclass(frozen=True)
    class Sized(Kind, default="one"):
        size: int = 1

    @dataclass(frozen=True)
    class One(Sized, kind="one"):
        pass

    with pytest.raises(TypeError, match="Sized is made as one of its kinds"):
        Sized()
    assert One().size == 1


def test_words_that_are_taken() -> None:
    with pytest.raises(ValueError, match=r"^Other: the kind 'circle' is taken by Circle; choose another$"):

        class Other(Angular, kind="circle"):
            pass

    assert Shape.kinds["circle"] is Circle


@pytest.mark.parametrize("word", ["", "a b", "a.b", "a\n", "ä!"])
def test_words_that_are_none(word: str) -> None:
    with pytest.raises(ValueError, match=r"^Other: the kind '.*' is no word of letters, digits, _ and -$"):

        class Other(Shape, kind=word):
            pass

    assert word not in Shape.kinds


def test_what_belongs_to_a_family_and_what_to_a_kind() -> None:
    message = "families have a default, the classes below them a kind"
    with pytest.raises(ValueError, match=message):

        class Family(Kind, kind="family"):
            pass

    with pytest.raises(ValueError, match=message):

        class Below(Shape, default="circle"):
            pass


def test_a_kind_is_no_field() -> None:
    with pytest.raises(ValueError, match="Field: its kind is class Field"):

        class Field(Shape):
            kind: str = "field"

    with pytest.raises(ValueError, match=r"Slots: its kind is class Slots.*no slots"):

        @dataclass(frozen=True, slots=True)
        class Slots(Shape, kind="slots"):
            pass


def test_a_class_that_cannot_be_read_is_told_when_first_used() -> None:
    class Bare(Shape, kind="bare"):
        weight: float = 1.0

    with pytest.raises(ValueError, match=r"^Bare: decorate it with @dataclass\(frozen=True\)$"):
        parse(Drawing, {})


def test_a_class_that_leaves_a_method_abstract() -> None:
    @dataclass(frozen=True)
    class Polygon(Angular, kind="polygon"):
        pass

    with pytest.raises(ValueError, match=r"^Polygon: define corners$"):
        parse(Drawing, {})


def test_a_family_without_kinds() -> None:
    class Empty(Kind):
        pass

    with pytest.raises(ValueError, match=r"^Empty: no kind of it is defined$"):
        parse(Empty, {})


def test_names_that_were_registered() -> None:
    with undone_on_error() as names:
        assert names == set()

        @dataclass(frozen=True)
        class Star(Shape, kind="star"):
            pass

        class Sound(Kind, default="loud"):
            pass

        @dataclass(frozen=True)
        class Loud(Sound, kind="loud"):
            pass

        @dataclass(frozen=True)
        class Silent(Sound):
            pass

    assert names == {"Shape.star", "Sound.loud"}
    assert parse(Drawing, {"shapes": [{"kind": "star"}]}).shapes == (Star(),)
    assert parse(Sound, {}) == Loud()


def test_all_tables_are_taken_back() -> None:
    families: list[type[Kind]] = []
    with pytest.raises(KeyError), undone_on_error() as names:

        @dataclass(frozen=True)
        class Star(Shape, kind="star"):
            pass

        @dataclass(frozen=True)
        class Blue(Colour, kind="blue"):
            pass

        class Sound(Kind):
            pass

        @dataclass(frozen=True)
        class Loud(Sound, kind="loud"):
            pass

        families.append(Sound)
        assert parse(Drawing, {"shapes": [{"kind": "star"}]}).shapes == (Star(),)
        raise KeyError

    assert names == set()
    assert list(Shape.kinds) == ["circle", "square-1", "group"] and list(Colour.kinds) == ["red", "circle"]
    assert families[0].kinds == {}
    assert problems({"shapes": [{"kind": "star"}]}) == [
        "shapes[0].kind: unknown kind 'star'; valid kinds: circle, group, square-1; "
        "class Unregistered has no kind: class Unregistered(.., kind=..)"
    ]

    @dataclass(frozen=True)
    class Again(Shape, kind="star"):
        pass

    assert Shape.kinds["star"] is Again


def test_a_class_that_cannot_be_read_is_taken_back_where_it_is_defined() -> None:
    with pytest.raises(ValueError, match=r"^Bare: decorate it"), undone_on_error():

        class Bare(Shape, kind="bare"):
            weight: float = 1.0

    assert "bare" not in Shape.kinds
    assert parse(Drawing, {}) == Drawing()
