"""Which units: one line of text, the same in recipes, on the command line and in Python.

SELECTION  = [-] SUMMAND [+|- SUMMAND ...]                      summed in one image
SUMMAND    = [FACTOR *] [TEACHER/]LAYER[#CALL][.in|.out]:CHANNELS[@POSITION]
CHANNELS   = 7 | 0-63 | 7,9 | *        each its own image
           | {7,9}                     summed in one image
           | cat                       by the classes' names, of what layers with one channel a class return
           | dir=FILE | mask=FILE      a direction of C numbers, or C numbers at each position, .npy or .safetensors
POSITION   = centre | Y,X | cls | patches | t=T                 by default all
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ensemble.teachers.class_names import ClassNames
from ensemble.teachers.taps import LOGITS, Tap, Tapped

_POSITION = re.compile(r"(.*)@(centre|center|cls|patches|[0-9]{1,9},[0-9]{1,9}|t=[0-9]{1,9})")
_CALL = re.compile(r"(.+)#([0-9]{1,9})(?:\.out)?")
_LIST = re.compile(r"\s*(\{[^{},]+(,[^{},]+)*\}|[^{},]+)\s*(,\s*(\{[^{},]+(,[^{},]+)*\}|[^{},]+)\s*)*")
_NUMBER = re.compile(r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*\*\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Summand:
    """One layer's part of a selection, as it was written; it can stand for several units, one an image."""

    teacher: str
    """Empty: every teacher."""
    tap: Tap
    channels: str
    position: str
    factor: float = 1.0

    @property
    def file(self) -> str:
        """Of a direction or a mask; empty where channels are named."""
        kind, _, file = self.channels.partition("=")
        return file if kind in ("dir", "mask") else ""

    def of(self, teacher: str) -> bool:
        """Whether it is this teacher's."""
        return self.teacher in ("", teacher)


@dataclass(frozen=True)
class Unit:
    """A part of what one image is to excite: `factor` times some numbers of a tapped value."""

    tap: Tap
    channels: tuple[int, ...] = ()
    """Summed; empty where a file says what is weighted."""
    position: str = ""
    factor: float = 1.0
    file: str = ""
    whole: bool = False
    """The file has numbers for each position, not for the channels alone."""
    written: str = field(default="", compare=False)
    """The channels as they were written, where that names classes."""

    @property
    def of_class(self) -> bool:
        """Whether it is what the network says of one class, and to be raised."""
        return self.tap == Tap(LOGITS) and len(self.channels) == 1 and self.factor > 0

    def text(self, teacher: str = "", *, numbered: bool = True) -> str:
        """As a selection has it, without its sign; classes by their numbers or, if not `numbered`, by their names."""
        channels = str(self.channels[0]) if len(self.channels) == 1 else "{" + ",".join(map(str, self.channels)) + "}"
        channels = channels if numbered else self.written or channels
        what = f"{'mask' if self.whole else 'dir'}={self.file}" if self.file else channels
        factor = "" if abs(self.factor) == 1 else f"{abs(self.factor):g}*"
        return (
            factor
            + (f"{teacher}/" if teacher else "")
            + f"{self.tap}:{what}"
            + (f"@{self.position}" if self.position else "")
        )

    def places(self, at: Tapped) -> list[int] | None:
        """Which of the flattened positions count; None: all. ValueError where the value has no such place."""
        if not self.position:
            return None
        size = at.positions
        if self.position in ("centre", "center") and len(size) == 2:
            return [size[0] // 2 * size[1] + size[1] // 2]
        if "," in self.position and len(size) == 2:
            y, x = map(int, self.position.split(","))
            if y < size[0] and x < size[1]:
                return [y * size[1] + x]
        if self.position in ("cls", "patches") and len(size) == 1 and at.prefix is None:
            raise ValueError(
                f"{self.tap}@{self.position}: which of {size[0]} tokens are patches' is not known of this network; "
                "name one as @t=0"
            )
        if self.position == "cls" and at.class_token:
            return [0]
        if self.position == "patches" and len(size) == 1 and at.prefix is not None:
            return list(range(at.prefix, size[0]))
        if self.position.startswith("t=") and len(size) == 1 and int(self.position[2:]) < size[0]:
            return [int(self.position[2:])]
        seen = {0: "a vector", 1: f"{size[0] if size else 0} tokens", 2: " x ".join(map(str, size))}[len(size)]
        raise ValueError(f"{self.tap}@{self.position}: there is no such place; the layer's value is {seen}")


def parse_selection(text: str) -> list[Summand]:
    """The summands of one selection; ValueError with what is wrong with it."""
    parts = re.split(r"\s+([+-])\s+", text.strip())
    signs = ["+", *parts[1::2]]
    return [
        _summand(part.strip(), -1.0 if sign == "-" else 1.0, text) for part, sign in zip(parts[::2], signs, strict=True)
    ]


def _summand(part: str, factor: float, text: str) -> Summand:
    if part.startswith("-"):
        part, factor = part[1:].lstrip(), -factor
    if (number := _NUMBER.fullmatch(part)) is not None:
        factor, part = factor * float(number[1]), number[2]
    if not 0 < abs(factor) < math.inf:
        raise ValueError(f"units: {text!r}: a factor of {factor:g} says nothing of a unit")
    for mark in (":dir=", ":mask="):
        if mark in part:
            where, _, rest = part.partition(mark)
            channels = mark[1:] + rest
            break
    else:
        where, colon, channels = part.rpartition(":")
        if not colon or not channels:
            raise ValueError(
                f"units: {text!r}: say which channels of {part.rstrip(':') or 'which layer'}, "
                "as LAYER:7, LAYER:0-63 or LAYER:*"
            )
    position = ""
    if (match := _POSITION.fullmatch(channels)) is not None:
        channels, position = match[1], match[2]
    if channels in ("dir=", "mask="):
        raise ValueError(f"units: {text!r}: name a file, as {channels}FILE.npy")
    if channels.startswith("mask=") and position:
        raise ValueError(f"units: {text!r}: a mask has numbers for each position; leave @{position} out")
    try:
        teacher, tap = parse_layer(where)
    except ValueError as error:
        raise ValueError(f"units: {text!r}: {error}") from None
    return Summand(teacher, tap, channels.strip(), position, factor)


def parse_layer(text: str) -> tuple[str, Tap]:
    """The teacher, empty where none is named, and what is tapped; ValueError where it is neither."""
    teacher, _, layer = text.rpartition("/")
    side: Literal["in", "out"] = "in" if layer.endswith(".in") else "out"
    layer = layer.removesuffix(".in")
    if (match := _CALL.fullmatch(layer)) is None:  # the network tells whether a layer is called so
        layer, call = LOGITS if layer == f"{LOGITS}.out" else layer, 1
    else:
        layer, call = match[1], int(match[2])
        layer = f"{LOGITS}#1" if (layer, call, side) == (LOGITS, 1, "out") else layer
    if not layer or not call:
        raise ValueError(f"{text!r} is no layer; write [TEACHER/]LAYER[#CALL][.in|.out]")
    return teacher, Tap(layer, call, side)


def expand(summand: Summand, at: Tapped, class_names: Sequence[str]) -> list[Unit]:
    """The units that a summand stands for, where its tap's value is laid out like this, one an image.

    ValueError for a channel that is not there, a place that is not, or a class that is none.
    """
    unit = Unit(summand.tap, position=summand.position, factor=summand.factor)
    if summand.file:
        units = [replace(unit, file=summand.file, whole=summand.channels.startswith("mask="))]
    else:
        units = [replace(unit, channels=k, written=text) for k, text in _channels(summand, at, class_names)]
    for one in units[:1]:
        one.places(at)
    return units


def _is_word(text: str) -> bool:
    return re.search(r"[^\s\d,{}-]", text) is not None


def _channels(summand: Summand, at: Tapped, class_names: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
    """Each image's channels, and how they were written where classes are named."""
    of_classes = len(class_names) == at.channels and summand.tap.side == "out"
    names = ClassNames(class_names if of_classes else ())
    if _is_word(summand.channels) and summand.channels in names:  # it may have commas
        return [((_class(summand.channels, names, summand),), summand.channels)]
    if summand.channels == "*":
        return [((k,), "") for k in range(at.channels)]
    if _LIST.fullmatch(summand.channels) is None:
        raise ValueError(f"units: {summand.tap}:{summand.channels}: write channels as 7, 0-63, 7,9, {{7,9}} or *")
    found: list[tuple[tuple[int, ...], str]] = []
    for item in re.findall(r"\{[^}]*\}|[^,]+", summand.channels):
        inner = item.strip()
        parts = [_range(part.strip(), at, names, summand) for part in inner.strip("{}").split(",")]
        channels = [k for part in parts for k in part]
        written = inner if _is_word(inner) else ""
        found += [(tuple(channels), written)] if inner.startswith("{") else [((k,), written) for k in channels]
    return found


def _range(text: str, at: Tapped, names: ClassNames, summand: Summand) -> Sequence[int]:
    if (match := re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)) is not None:
        digits = max(len(match[1]), len(match[2] or ""))
        if digits > 9:
            raise ValueError(f"units: {summand.tap}: a number of {digits} digits is no channel")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"units: {summand.tap}: range {text} runs backwards")
        if last >= at.channels:
            raise ValueError(f"units: {summand.tap}: there is no channel {last}; it has 0 to {at.channels - 1}")
        return range(first, last + 1)
    return [_class(text, names, summand)]


def _class(text: str, names: ClassNames, summand: Summand) -> int:
    if text not in names and (place := re.search(r"@(.*)", text)) is not None:
        raise ValueError(f"units: {summand.tap}: @{place[1]} is no place; write @centre, @Y,X, @cls, @patches or @t=T")
    try:
        return names.index(text, f"{text!r} names no channel", "give channels by their numbers, 7, 0-63, 7,9 or *")
    except ValueError as error:
        raise ValueError(f"units: {summand.tap}: {error}") from None
