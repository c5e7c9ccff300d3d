"""Images that networks made, with what these say of them: the reader of a finished dataset folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from ensemble.data.labelled import LabelledImages
from ensemble.machine.files import read_json

MANIFEST = "manifest.json"


class GeneratedImages(Dataset[Any]):
    """The images of `path`; ValueError where no manifest says that all are there."""

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = Path(path).expanduser()
        if not (self.path / MANIFEST).is_file():
            raise ValueError(f"dataset: {self.path} holds no {MANIFEST}; give the folder of a finished dataset")
        self.manifest: dict[str, Any] = read_json(self.path / MANIFEST)
        self.class_names = tuple(self.manifest["class_names"])
        self.size = int(self.manifest["size"])
        self.teachers = tuple(self.manifest["teachers"])

    def __len__(self) -> int:
        return int(self.manifest["images"])

    @property
    def targets(self) -> torch.Tensor:
        return self._all("targets")

    def labelled(self) -> LabelledImages:
        numbers = tuple(f"{i:04d}" for i in range(self.logits(self.teachers[0]).shape[1]))
        return LabelledImages(self._all("images"), self.targets, self.class_names or numbers)

    def logits(self, teacher: str) -> torch.Tensor:
        return self._all(f"logits/{teacher}")

    def _all(self, name: str) -> torch.Tensor:
        return torch.cat([shard[name] for shard in self._shards])

    @cached_property
    def _shards(self) -> list[dict[str, torch.Tensor]]:
        return [load_file(self.path / "shards" / shard["file"]) for shard in self.manifest["shards"]]
