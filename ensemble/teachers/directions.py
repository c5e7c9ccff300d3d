"""Directions in a layer's values, from files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


@lru_cache(maxsize=64)
def read_direction(file: str) -> torch.Tensor:
    """The numbers in `file`, .npy or a .safetensors that holds one tensor, float64.

    ValueError where it cannot be read, or holds something else than finite numbers.
    """
    path = Path(file).expanduser()
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            found = torch.as_tensor(np.ascontiguousarray(array, dtype=np.float64))
        else:
            tensors = list(load_file(path).values())
            if len(tensors) != 1:
                raise ValueError(f"it holds {len(tensors)} tensors; one is wanted")
            found = tensors[0].double()
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"units: {file} cannot be read as a direction, .npy or .safetensors ({error})") from None
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"units: {file}: not all values are finite")
    return found
