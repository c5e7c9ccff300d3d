"""The JSON schema of configurations, by which editors complete and check them."""

from __future__ import annotations

from typing import Any

from ensemble.config.parsing import adapter


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """What `parse(cls, ...)` reads, as a JSON schema (draft 2020-12); descriptions are docstrings.

    It lacks `rules`, which only `parse` knows.
    """
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | adapter(cls).json_schema()
