"""What determines a search."""

from __future__ import annotations

import hashlib
import json
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ensemble.search.metrics
from ensemble.config.overrides import differences
from ensemble.config.parsing import parse, to_plain
from ensemble.config.yaml_files import load_text
from ensemble.recipe import Recipe
from ensemble.search.metric import Metric
from ensemble.search.space import Space

for _module in pkgutil.iter_modules(ensemble.search.metrics.__path__):  # a kind is known once its file is imported
    import_module(f"{ensemble.search.metrics.__name__}.{_module.name}")


@dataclass(frozen=True)
class Settings:
    """All of it: two searches of the same settings are one study."""

    recipe: Recipe
    space: Space
    metric: Metric
    judge: str
    data: str | None
    seeds: int
    """So many runs of each point."""
    sampler: str
    pruner: str

    def plain(self) -> dict[str, Any]:
        """As a file holds them, without what differs between machines: devices, and the folders above the data."""
        recipe = to_plain(self.recipe)
        recipe["runtime"] = {key: value for key, value in recipe["runtime"].items() if key != "device"}
        return {
            "metric": to_plain(self.metric),
            "judge": self.judge,
            "data": Path(self.data).name if self.data else None,
            "seeds": self.seeds,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "space": self.space.plain(),
            "recipe": recipe,
        }

    @property
    def study(self) -> str:
        """The study's name in a database."""
        text = json.dumps(self.plain(), sort_keys=True)
        return f"search-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    def changed(self, stored: dict[str, Any]) -> list[str]:
        """Where these settings differ from stored ones."""
        return differences(stored, self.plain())


def parse_metric(text: str) -> Metric:
    """The metric of a name, or of fields as `{kind: student, steps: 600}`; ConfigError for what is none."""
    data = load_text(text, "--metric")
    return parse(Metric, {"kind": data} if isinstance(data, str) else data, "metric")  # type: ignore[type-abstract]
