"""A folder of generated images: its manifest, and its shards, a safetensors file a batch."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ensemble.machine.files import read_json
from models import ModelCard

MANIFEST, SHARDS = "manifest.json", "shards"
FORMAT = 1
_IMAGES, _TARGETS, _LOGITS = "images", "targets", "logits/"
_SHARD = re.compile(r"(\d{6,})\.safetensors")


def shard_name(batch: int) -> str:
    """The file's name in SHARDS."""
    return f"{batch:06d}.safetensors"


def batch_of(name: str) -> int | None:
    """The batch whose shard has this name; None where no shard is called so."""
    match = _SHARD.fullmatch(name)
    return int(match[1]) if match and shard_name(int(match[1])) == name else None


def pack(pixels: torch.Tensor, targets: torch.Tensor, logits: Mapping[str, torch.Tensor], seed: int) -> bytes:
    """A shard's bytes: `images` uint8 (n, 3, H, W), `targets` int64 (n,), `logits/<teacher>` float16 (n, classes)."""
    top = torch.finfo(torch.float16).max  # beyond it would be infinity, of which no softmax is a number
    tensors = {_LOGITS + name: said.float().clamp(-top, top).half() for name, said in logits.items()}
    tensors |= {_IMAGES: pixels.to(torch.uint8), _TARGETS: targets.to(torch.int64)}
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"seed": str(seed)})


class Shard:
    """One file, memory-mapped; its tensors are read where they are asked for.

    Raises ValueError, in one line, where the file is missing, cut, or no shard.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._open = safe_open(file, "pt")
            self._slices = {name: self._open.get_slice(name) for name in self._open.keys()}  # noqa: SIM118
            shape = self._slices[_IMAGES].get_shape()
        except FileNotFoundError:
            raise ValueError(f"{file} is missing; make it again, by invert.py dataset --resume") from None
        except (SafetensorError, OSError, KeyError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"{file} is damaged ({why}); remove it and make it again, by invert.py dataset --resume"
            ) from None
        self.images, self.size = int(shape[0]), int(shape[2])
        """How many, and their height and width."""

    @property
    def teachers(self) -> list[str]:
        """Whose logits it has, in the order of their names."""
        return sorted(name.removeprefix(_LOGITS) for name in self._slices if name.startswith(_LOGITS))

    def pixels(self, rows: slice = slice(None)) -> torch.Tensor:
        """Images of these rows, uint8 (n, 3, H, W)."""
        found: torch.Tensor = self._slices[_IMAGES][rows]
        return found

    def targets(self) -> torch.Tensor:
        """int64 (n,)."""
        found: torch.Tensor = self._slices[_TARGETS][:]
        return found

    def logits(self, teacher: str, rows: slice = slice(None)) -> torch.Tensor:
        """What a teacher says of these rows, float16 (n, classes)."""
        found: torch.Tensor = self._slices[_LOGITS + teacher][rows]
        return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a finished dataset says of itself; ValueError, in one line, where there is none."""
    file = folder / MANIFEST
    if not file.is_file():
        if (folder / SHARDS).is_dir():
            command = f"python invert.py dataset --output {shlex.quote(str(folder))} --resume"
            raise ValueError(f"{folder} holds a dataset that is not finished; {command} goes on with it")
        raise ValueError(f"{folder} holds no dataset; give the folder of a finished invert.py dataset")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file} is no manifest of format {FORMAT}; give the folder of a finished invert.py dataset")
    return manifest


def is_dataset(folder: Path) -> bool:
    """Whether a dataset, finished or not, is in the folder."""
    return (folder / MANIFEST).is_file() or (folder / SHARDS).is_dir()


def own_labels(card: ModelCard) -> tuple[str, ...]:
    """A network's classes by `class_labels`; none where it has no names for them."""
    return class_labels(card.class_names, card.num_classes) if card.class_names else ()


def class_labels(class_names: Sequence[str], classes: int) -> tuple[str, ...]:
    """A name for each of so many classes, no two alike: its own, with its index where others have it, too.

    Where classes have no names they are their indices, with zeros in front, so that they sort in their order.
    """
    return distinct(class_names) if class_names else tuple(f"{index:04d}" for index in range(classes))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each with its index where others have it, too; again where one was called so already."""
    counts = Counter(names)
    if len(counts) == len(names):
        return tuple(names)
    return distinct([name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)])
