"""Dataset folders as `invert.py dataset` leaves them, of tiny images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_dataset(
    folder: Path,
    images: torch.Tensor,
    targets: torch.Tensor,
    class_names: Sequence[str],
    logits: Mapping[str, torch.Tensor],
    teachers: Mapping[str, Mapping[str, Any]] | None = None,
    shards: int = 2,
) -> Path:
    """`images` uint8 (N, 3, S, S); teachers are those of `logits` (N, classes), with models of their names."""
    listed = []
    (folder / "shards").mkdir(parents=True)
    for k, index in enumerate(torch.arange(len(images)).tensor_split(shards)):
        file = f"{k:06d}.safetensors"
        tensors = {"images": images[index], "targets": targets[index]}
        tensors |= {f"logits/{name}": value[index].half() for name, value in logits.items()}
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "shards" / file)
        digest = hashlib.sha256((folder / "shards" / file).read_bytes()).hexdigest()
        listed.append({"file": file, "images": len(index), "seed": k, "sha256": digest})
    manifest = {
        "format": 1,
        "images": len(images),
        "size": images.shape[-1],
        "class_names": list(class_names),
        "per_class": {name: int((targets == i).sum()) for i, name in enumerate(class_names)},
        "teachers": {name: {"model": name, "sha256": None} for name in logits} | dict(teachers or {}),
        "shards": listed,
        "cost": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
