"""Directions in a layer's values, from files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ensemble.machine.files import user_path


def read_direction(file: str) -> torch.Tensor:
    """The numbers in `file`, .npy or a .safetensors that holds one tensor, float64.

    ValueError where it cannot be read, or holds something else than finite numbers, or zeros alone.
    """
    path = user_path(file)
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"units: {file} cannot be read as a direction ({error.strerror})") from None
    return _read(file, path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read(file: str, path: Path, changed: int, size: int) -> torch.Tensor:
    """`changed` and `size` tell a file from what it was before: a notebook writes it anew."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"it holds {array.dtype}")
            found = torch.as_tensor(np.ascontiguousarray(array, dtype=np.float64))
        else:
            tensors = list(load_file(path).values())
            if len(tensors) != 1:
                raise ValueError(f"it holds {len(tensors)} tensors; one is wanted")
            if tensors[0].is_complex():
                raise ValueError("it holds complex numbers")
            found = tensors[0].double()
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        raise ValueError(f"units: {file} cannot be read as a direction, .npy or .safetensors ({error})") from None
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"units: {file}: not all values are finite")
    if not bool(found.any()):
        raise ValueError(f"units: {file}: all values are 0")
    return found
