"""Atomic save and restore of a run: a safetensors file, and beside it a JSON file that vouches for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ensemble.machine.errors import MachineFailure
from ensemble.machine.files import write_bytes

KEPT = 2


class CheckpointError(MachineFailure):
    """A checkpoint cannot be written, or none can be read."""


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` and the JSON-able `meta` that were saved at `step`."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def save_checkpoint(
    folder: Path,
    prefix: str,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any],
    keep: int = KEPT,
) -> Path:
    """Write `<prefix>-<step>.safetensors`, then `.json` with a checksum of both; keep the newest `keep` of the prefix.

    Each file is written beside its place, synced and renamed; the JSON comes last, so what it names is whole.
    Raises CheckpointError where the disk refuses; earlier checkpoints stay.
    """
    data = save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    record = {"step": step, "sha256": _digest(step, meta, data), "meta": dict(meta)}
    target = folder / f"{prefix}-{step:08d}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(target.with_suffix(".safetensors"), data)
        write_bytes(target, json.dumps(record, indent=1).encode())
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: step {step} could not be written to {folder} ({error.strerror or error}); "
            "the last good checkpoint is intact"
        ) from None
    kept = {file.stem for file in _newest_first(folder, prefix)[:keep]}
    for file in folder.glob(f"{prefix}-*"):  # a process that was killed may have left half a checkpoint
        if file.stem not in kept and file.suffix in (".json", ".safetensors", ".tmp"):
            file.unlink(missing_ok=True)
    return target


def load_checkpoint(folder: Path, prefix: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of the prefix (None: there is none), and a warning for each damaged one."""
    warnings: list[str] = []
    for file in _newest_first(folder, prefix):
        try:
            return _read(file), warnings
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.append(f"checkpoint {file.name} is damaged ({error}); falling back to the one before")
    return None, warnings


def _read(file: Path) -> Checkpoint:
    record = json.loads(file.read_text())
    data = file.with_suffix(".safetensors").read_bytes()
    if _digest(record["step"], record["meta"], data) != record["sha256"]:
        raise ValueError("its checksum does not match")
    return Checkpoint(record["step"], load_tensors(data), record["meta"])


def _digest(step: int, meta: Mapping[str, Any], data: bytes) -> str:
    """SHA-256 of the tensors' bytes and of step and meta, which a flipped bit could change as quietly."""
    text = json.dumps([step, meta], sort_keys=True)
    return hashlib.sha256(data + json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()


def _newest_first(folder: Path, prefix: str) -> list[Path]:
    pattern = re.compile(re.escape(prefix) + r"-\d{8}\.json")
    return sorted((f for f in folder.glob(f"{prefix}-*.json") if pattern.fullmatch(f.name)), reverse=True)


def checksum(tensors: Mapping[str, Any]) -> str:
    """A hash of all tensors' names and bytes; what else a module keeps in its state is left out."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(name for name, value in tensors.items() if isinstance(value, torch.Tensor)):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
