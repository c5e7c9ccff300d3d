"""Statistics that were measured on real images, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ensemble.machine.checkpoint import checksum
from ensemble.machine.files import write_bytes
from models import ModelCard

Levels = tuple[float, float, float, float]
"""How far batches of real images are from a layer's statistics (`BNStatistics.calibrate`)."""

_ENTRY = "calibration"
"""The one entry of the file's metadata: several would be written in an order that nobody fixes."""


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer that keeps no statistics: mean and biased variance (C,), float64, of its input's channels."""

    dim: int
    """Where the channels of its input are, 1 or -1."""
    mean: torch.Tensor
    var: torch.Tensor


@dataclass(frozen=True)
class Measurement:
    """What real images are like to one network with its weights, at one input size."""

    model: str
    """As on the command line."""
    identity: str
    """`identity_of` the network."""
    input_size: int
    images: int
    data: str
    """Which images: the name of the folder or archive, and the split."""
    layers: Mapping[str, MeasuredLayer]
    """Layers without running statistics, by name."""
    levels: Mapping[str, Levels]
    """By `BNStatistics.keys`, of all layers that are matched."""
    weights: str | None = None
    """SHA-256 of the weights, where it is known."""

    @property
    def digest(self) -> str:
        """Of all numbers that a run takes from it."""
        tensors = {f"{key}.levels": torch.tensor(levels) for key, levels in self.levels.items()}
        for name, layer in self.layers.items():
            tensors |= {f"{name}.mean": layer.mean, f"{name}.var": layer.var, f"{name}.dim": torch.tensor(layer.dim)}
        return checksum(tensors)

    def check(self, name: str, net: nn.Module, card: ModelCard) -> None:
        """ValueError where `net` is another network than the one that was measured."""
        known = {key for key, _ in net.named_modules()}
        names = [*self.layers, *(key.partition("#")[0] for key in self.levels)]
        if missing := [key for key in names if key not in known]:
            raise ValueError(f"statistics: {name} has no layer {missing[0]}; they are those of {self.model}")
        if self.input_size != card.input_size:
            raise ValueError(
                f"statistics: those of {self.model} are of {self.input_size} pixels, and {name} takes "
                f"{card.input_size}; measure them again"
            )
        if self.identity != identity_of(net, card):
            raise ValueError(
                f"statistics: those of {self.model} are of other weights than {name} has, or of another mean and std; "
                "measure them again"
            )


def identity_of(net: nn.Module, card: ModelCard) -> str:
    """A digest of what decides a network's activations: its parameters and buffers in fp32, and its mean and std."""
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in net.state_dict().items()
        if isinstance(value, torch.Tensor) and not key.endswith("num_batches_tracked")
    }
    return checksum({**state, "(mean, std)": torch.tensor([card.mean, card.std], dtype=torch.float64)})


def write_measurement(path: Path, found: Measurement) -> None:
    """Writes the file, whole or not at all; the same measurement gives the same bytes."""
    tensors = {f"{key}.levels": torch.tensor(levels, dtype=torch.float64) for key, levels in found.levels.items()}
    for name, layer in found.layers.items():
        tensors |= {f"{name}.mean": layer.mean.contiguous(), f"{name}.var": layer.var.contiguous()}
    about = {key: getattr(found, key) for key in _ABOUT}
    about["channels"] = {name: layer.dim for name, layer in found.layers.items()}
    write_bytes(path, save(tensors, {_ENTRY: json.dumps(about, sort_keys=True)}))


def read_measurement(path: Path) -> Measurement:
    """What `write_measurement` wrote; ValueError, in one line, where the file is none of that kind or is damaged."""
    if not path.is_file():
        raise ValueError(f"statistics: {path} is no file; invert.py calibrate writes one")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_ENTRY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        return _measurement(about, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"statistics: {path} is no file of invert.py calibrate, or is damaged ({why})") from None


_ABOUT = {"model": str, "identity": str, "input_size": int, "images": int, "data": str, "weights": (str, type(None))}
"""What the metadata say of a measurement, and of which types."""


def _measurement(about: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Measurement:
    """ValueError, KeyError or TypeError for what does not hold together."""
    for key, kind in _ABOUT.items():
        if not isinstance(about[key], kind):  # type: ignore[arg-type]
            raise ValueError(f"its {key} is {about[key]!r}")
    layers = {
        name: MeasuredLayer(dim, _values(tensors, f"{name}.mean"), _values(tensors, f"{name}.var"))
        for name, dim in about["channels"].items()
    }
    levels: dict[str, Levels] = {}
    for key in tensors:
        name, _, what = key.rpartition(".")
        if what == "levels":
            mean_floor, mean_spread, var_floor, var_spread = _values(tensors, key).tolist()
            levels[name] = mean_floor, mean_spread, var_floor, var_spread
    for name, layer in layers.items():
        if layer.dim not in (1, -1) or layer.mean.shape != layer.var.shape or name not in levels:
            raise ValueError(f"{name} lacks something")
        if (layer.var < 0).any() or not layer.var.any():
            raise ValueError(f"{name} has no variance")
    if not levels:
        raise ValueError("it names no layer")
    return Measurement(**{key: about[key] for key in _ABOUT}, layers=layers, levels=levels)


def _values(tensors: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
    values = tensors[key].double()
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError(f"{key} is no list of finite numbers")
    return values
