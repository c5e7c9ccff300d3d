"""Weights that come with the package: models/weights/NAME.json (the record) beside its .safetensors file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from models._card import ModelCard, Weights
from models._loading import WeightsFile, check_sha256, read_weights

FOLDER = Path(__file__).parent / "weights"


def with_bundled(card: ModelCard, folder: Path = FOLDER) -> ModelCard:
    """`card` with the record of `folder`/NAME.json, where there is one, as its default weights.

    The tag is the card's label space (`cifar10`), or `bundled` where it has none.
    Raises ValueError where the record is not a JSON object of Weights' fields with `file` and `sha256`.
    """
    path = folder / f"{card.name}.json"
    if not path.is_file():
        return card
    try:
        record = Weights(source="bundled", **json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not a record of weights ({error})") from None
    if not record.file or not record.sha256:
        raise ValueError(f"{path} is not a record of weights (it needs `file` and `sha256`)")
    tag = card.label_space or "bundled"
    return replace(card, weights={**card.weights, tag: record}, default_weights=tag)


def read_bundled(record: Weights, folder: Path = FOLDER) -> WeightsFile:
    """The file that `record` names. Raises ValueError where it is missing or its SHA-256 is another."""
    assert record.file is not None and record.sha256 is not None
    check_sha256(folder / record.file, record.sha256)
    return read_weights(folder / record.file)
