"""The text that names a network and its weights: NAME[:key=value[,key=value]][@WEIGHTS]."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".th", ".pt")


@dataclass(frozen=True)
class ModelSpec:
    """A parsed specification; option values are still text, since only the network knows their types."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    weights: str = "default"
    """`default`, `random`, a tag on the network's card, a path, or PATH#PART."""

    @property
    def path(self) -> Path | None:
        """The file that `weights` names: one that exists, or what looks like one by a known suffix or a slash."""
        return self._file[0]

    @property
    def part(self) -> str | None:
        """Which of a file's sets of weights is meant: `ema` in `FILE#ema`."""
        return self._file[1]

    @property
    def _file(self) -> tuple[Path | None, str | None]:
        if self.weights in ("default", "random"):
            return None, None
        text, _, part = self.weights.rpartition("#")
        for name, chosen in ((self.weights, None), (text, part)):
            if name and chosen != "" and os.path.isfile(os.path.expanduser(name)):
                return Path(os.path.expanduser(name)), chosen
        name, chosen = (text, part) if text and part else (self.weights, None)
        if name.endswith(WEIGHTS_SUFFIXES) or "/" in name:
            return Path(os.path.expanduser(name)), chosen
        return None, None


def parse_spec(spec: str) -> ModelSpec:
    """The parts of `NAME[:key=value[,key=value]][@WEIGHTS]`, e.g. `vgg16_bn_cifar:width=0.25@net.pth`.

    The first `@` ends the name and its options, so a path may hold `@`, `:` and commas. No look-up happens.
    Raises ValueError where a part is empty, an option has no `=`, or comes twice.
    """
    head, at, weights = spec.strip().partition("@")
    name, colon, text = head.partition(":")
    if not name or (at and not weights) or (colon and not text) or any(c.isspace() for c in head):
        raise ValueError(f"model {spec!r}: expected NAME[:key=value[,key=value]][@WEIGHTS], without spaces")
    options: dict[str, str] = {}
    for item in text.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise ValueError(f"model {spec!r}: option {item!r} is not key=value")
        if key in options:
            raise ValueError(f"model {spec!r}: option {key!r} is given twice")
        options[key] = value
    return ModelSpec(name, options, weights or "default")


def convert_option(text: str, default: Any) -> Any:
    """`text` as a value of the type that `default` has (bool, int, float or str).

    Raises ValueError where it is none.
    """
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, got {text!r}")
        return text.lower() == "true"
    kind = type(default)
    assert kind in (int, float, str), f"option of type {kind.__name__}"
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"expected {wanted}, got {text!r}") from None
