"""The classes of a network by their names, as people type them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from ensemble.config.mistakes import did_you_mean


class ClassNames:
    """Finds a class by its name, whatever the case, and whether or not accents stand apart from their letters."""

    def __init__(self, names: Sequence[str], further: Mapping[str, int] | None = None) -> None:
        """`names` in the order of the classes; `further` ones, such as WordNet's, say their class."""
        self._named: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            self._named.setdefault(_plainly(name), []).append(index)
        self._named |= {_plainly(name): [index] for name, index in (further or {}).items()}
        self._written = {_plainly(name): name for name in reversed([*names, *(further or {})])}

    def __contains__(self, text: str) -> bool:
        return _plainly(text) in self._named

    def index(self, text: str, missing: str, otherwise: str = "") -> int:
        """The class of that name.

        ValueError where several classes have it, or none has: that is `missing`, with the nearest, or `otherwise`.
        """
        found = self._named.get(_plainly(text), [])
        if len(found) > 1:
            raise ValueError(f"classes {' and '.join(map(str, found))} are all called {text!r}; give the index")
        if not found:
            hint = did_you_mean(_plainly(text), self._named, otherwise, self._written)
            raise ValueError(f"{missing}; {hint}" if hint else missing)
        return found[0]


def _plainly(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()
