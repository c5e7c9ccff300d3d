"""What a weights file, the YAML card beside it and a specification's options say of a network's card."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from models._card import ModelCard
from models._described import described, show
from models._layouts import Layout

CARD_OPTIONS = ("input_size", "mean", "std", "class_names")
"""Options that every network has, unless its factory has one of the same name."""

_warned: set[str] = set()


def yaml_card(path: Path) -> Path:
    """Where the YAML card of the weights file `path` lies: its last ending is replaced, net.pth has net.yaml."""
    return path.with_suffix(".yaml")


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, of which a short text can make a huge value, without tags, and with each key once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            self._refuse("write a plain value; aliases and tags are not allowed", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            self._refuse("a key stands twice", node)
        return mapping

    @staticmethod
    def _refuse(problem: str, at: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_yaml_card(path: Path) -> dict[Any, Any]:
    """What the YAML card of the weights file `path` says, unchecked; nothing where there is none.

    Raises ValueError where it is not YAML or not a mapping.
    """
    file = yaml_card(path)
    if not file.is_file():
        return {}
    try:
        says = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as bytes that are not text, 2026-13-01
        raise ValueError(f"{file} is not a YAML file that can be read ({' '.join(str(error).split())})") from None
    if not isinstance(says, dict):
        raise ValueError(f"{file}: expected entries such as `mean: [0.5, 0.5, 0.5]`, got {show(says)}")
    return says


def of_file(card: ModelCard, path: Path, metadata: Mapping[str, Any]) -> ModelCard:
    """`card` with what the weights file `path` says in its `metadata`, over which goes its YAML card.

    Raises ValueError as `described` does.
    """
    beside = read_yaml_card(path)
    own = {key: value for key, value in metadata.items() if key not in beside}
    card = described(card, own, f"{path}, its metadata `card`")
    return described(card, beside, f"{yaml_card(path)} (the card of {path.name})")


def by_options(card: ModelCard, options: Mapping[str, str]) -> ModelCard:
    """`card` with the values of CARD_OPTIONS that are in `options`, as they stand in a specification.

    `mean=0.5/0.4/0.3`, or one number; `class_names=FILE`, a text file with a name a line.
    Raises ValueError as `described` does, and where FILE is not such a file.
    """
    says = {key: _parsed(card.name, key, text) for key, text in options.items()}
    return described(card, says, f"{card.name}, options")


def _parsed(name: str, key: str, text: str) -> Any:
    """The option's value, or its text where it is none."""
    if key == "class_names":
        return _lines(Path(os.path.expanduser(text)), f"{name}: option class_names")
    try:
        if key == "input_size":
            return int(text)
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def _lines(file: Path, where: str) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{where}: {file} is not a file; give a text file with the name of a class a line")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{where}: {file} is not UTF-8 text") from None
    if not lines or "" in lines:
        number = lines.index("") + 1 if lines else 1
        raise ValueError(f"{where}: {file}, line {number}: expected the name of a class")
    return lines


def warn_of_assumed(card: ModelCard, path: Path | None, layout: Layout | None = None) -> None:
    """Warns, once, that `card` has a mean or std that nobody said: of the file `path`, or of the network.

    Those of a file in another project's layout are that project's.
    """
    if not card.assumed:
        return
    missing = " and ".join(card.assumed)
    options = ",".join(f"{key}=.." for key in card.assumed)
    if path is None:
        text = (
            f"{card.name}'s card does not say its {missing}; ImageNet's are assumed"
            f" (say them on the card, or as {card.name}:{options})"
        )
    else:
        values = ", ".join(f"{key} {'/'.join(map(str, value))}" for key, value in card.assumed.items())
        source = f"from {card.name}" if layout is None else f"as its layout is that of {layout.name}"
        text = (
            f"{path} does not say its {missing}; assumed {source}: {values}"
            f" (give them as {card.name}:{options}@FILE or in {yaml_card(path)})"
        )
    warn_once(card, text)


def warn_of_layout(card: ModelCard, path: Path, layout: Layout) -> None:
    """Warns, once, of what the names in the file `path` do not tell, where `layout` has such a note."""
    if layout.note:
        warn_once(card, f"{path} is laid out as {layout.name} saves {card.name}; {layout.note}")


def warn_of_normalizer(card: ModelCard, path: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Warns, once, of a layer in the file that normalises inputs, where the card does not say the same."""
    if not card.assumed and (tuple(card.mean), tuple(card.std)) == (mean, std):
        return
    said = f"mean={'/'.join(f'{v:g}' for v in mean)},std={'/'.join(f'{v:g}' for v in std)}"
    what = f"{path} holds a layer that normalises inputs, which is not applied"
    warn_once(card, f"{what}; to do as it does ask for {card.name}:{said}@FILE")


def warn_once(card: ModelCard, text: str | None) -> None:
    """Warns of `text`, unless that was said before."""
    if text is not None and text not in _warned:
        _warned.add(text)
        # the place is the user's network, and not the line of ours that happened to load it
        warnings.warn_explicit(text, UserWarning, f"<{card.name}>", 1)
