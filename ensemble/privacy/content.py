"""What a page of findings says, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ensemble.privacy.findings import Finding, Table
from ensemble.privacy.pictures import Strip


@dataclass(frozen=True, kw_only=True)
class Content:
    """An audit, or a study: what its page shows and its JSON holds."""

    model: str
    facts: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]
    figures: dict[str, float | str | None]
    tables: tuple[Table, ...]
    pictures: tuple[Strip, ...]
    untested: tuple[str, ...]
    seconds: float
    scores: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Of members and of others, by attack."""
    scored: tuple[Sequence[str], Sequence[str]] = ((), ())
    """The files of these images, where they have any."""


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON has them."""
    if isinstance(value, Finding):
        parts = {key: part for key, part in vars(value).items() if key != "figure"}
        return {key: plain(part) for key, part in (parts | {"value": value.value, "interval": value.interval}).items()}
    if isinstance(value, Table):
        return {key: plain(part) for key, part in vars(value).items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value
