"""Weights files: reading them without running anything they hold, and fitting them to a network strictly."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.serialization import safe_globals

from models._card import ModelCard
from models._checkpoint import COUNTER, check_values, tensors_of
from models._spec import WEIGHTS_SUFFIXES

NETWORK = "network"
"""Key of a safetensors file's metadata: the name of the network that the weights are of."""


@dataclass(frozen=True)
class WeightsFile:
    """`tensors` by their address in the file, and what a safetensors file says beside them."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weights(path: Path) -> WeightsFile:
    """The tensors of a .safetensors file or of a file of torch.save, on the CPU, in the file's dtypes.

    Keys are the file's, dotted through its dictionaries, such as `state_dict.module.fc.bias`: which of them are a
    network's is another's question. Masks of pruning are applied, counters left out. Nothing in the file is
    executed: safetensors, or torch.load(weights_only=True), in which what is harmless beside weights (settings,
    NumPy's numbers) is read as empty objects.
    Raises ValueError where the file is missing, is no weights file, or would need pickled code.
    """
    _check_is_file(path)
    if path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content, metadata = _read_torch(path), {}
    tensors = tensors_of(content)
    if not tensors:
        raise ValueError(f"{path} holds no state dict (a dictionary of tensors, or one below another's key)")
    return WeightsFile(path, tensors, metadata)


def read_card(path: Path) -> dict[str, Any]:
    """What a safetensors file says about itself in its metadata `card`; nothing for files of torch.save.

    Its tensors are not read. Raises ValueError where the file is missing, is not what its ending says, or where
    the entry is not a JSON object.
    """
    _check_is_file(path)
    if path.suffix != ".safetensors":
        return {}
    with _opened(path) as file:
        text = (file.metadata() or {}).get("card", "{}")
    try:
        card = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the metadata `card` is not JSON ({error})") from None
    if not isinstance(card, dict):
        raise ValueError(f"{path}: the metadata `card` is not a JSON object")
    return card


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        held = [file for suffix in WEIGHTS_SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
        such = f", such as {held[0]}" if held else ""
        raise ValueError(f"weights file {path} is a folder; give a file in it{such}")
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from None


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return tensors, metadata


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(10)[8:] == b'{"':  # a length and a JSON object
            raise ValueError(f"{path} looks like a safetensors file; give it the ending .safetensors")
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive, which is code; save only its state dict, where you trust it:"
            f" torch.save(torch.jit.load({str(path)!r}).state_dict(), 'state.pth')"
        )
    try:
        with safe_globals([(_Nothing, name) for name in _HARMLESS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, beside the line that says what to do
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error")[2]
        code = re.search(r"(?:GLOBAL|global:?|class)\s+([\w.]+\.\w+)", reason)
        if code is None:
            raise ValueError(
                f"{path} is not a weights file that can be read without running pickled code; give a .safetensors file "
                "or what torch.save wrote of a state dict"
            ) from None
        raise ValueError(
            f"{path} needs pickled code to be read ({code[1]}), which is refused; save only its state dict, where you"
            f" trust it: torch.save(torch.load({str(path)!r}, weights_only=False).state_dict(), 'state.pth')"
        ) from None
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        reason = str(error).partition(". ")[0].partition("\n")[0]
        raise ValueError(
            f"{path} is not a weights file, or is damaged or cut short ({type(error).__name__}: {reason})"
        ) from None


class _Nothing:
    """Stands in for what lies beside weights: it takes anything, and does and keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_HARMLESS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.defaultdict",
    "datetime.datetime",
    "datetime.timedelta",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
)
"""Globals of pickles that are read as `_Nothing`; neither they nor their modules are looked up."""


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def check_sha256(path: Path, expected: str) -> None:
    """Raises ValueError where the file is missing or its SHA-256 (hex) is not `expected`."""
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist; reinstall the package")
    found = sha256(path)
    if found != expected:
        raise ValueError(f"{path} is damaged: SHA-256 {found[:12]}…, expected {expected[:12]}…; reinstall the package")


def sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fit(net: nn.Module, tensors: Mapping[str, torch.Tensor], card: ModelCard, source: str) -> None:
    """Copies `tensors` into `net` (converted to its dtypes); BatchNorm's batch counters are left out of it.

    Raises ValueError that names the first missing, unexpected and differently shaped keys, with their counts, or
    else the first key that holds NaN or infinite values, or is no dense floating-point tensor where one belongs.
    """
    state = net.state_dict()  # keeps the modules' version numbers, which some networks check
    wanted = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)}
    given = {key: value for key, value in tensors.items() if not key.endswith(COUNTER)}
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shaped = {
        key: (tuple(given[key].shape), shape)
        for key, shape in wanted.items()
        if key in given and tuple(given[key].shape) != shape
    }
    if missing or unexpected or shaped:
        problems = [
            _first(f"{len(missing)} missing", missing),
            _first(f"{len(unexpected)} unexpected", unexpected),
        ]
        texts = [f"{key} {list(file)} for {list(wanted)}" for key, (file, wanted) in shaped.items()]
        problems.append(_first(f"{len(shaped)} of another shape", texts))
        text = f"{source} does not fit {card.name}: " + "; ".join(filter(None, problems))
        raise ValueError(text + _hint(card, shaped))
    check_values(given, source)
    for key, value in given.items():
        if state[key].is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{source}: {key} is of type {kind}, without a scale; save the network in fp32")
    state.update(given)
    net.load_state_dict(state)


def _first(title: str, keys: list[str], limit: int = 3) -> str:
    return f"{title} ({', '.join(keys[:limit])}{', …' if len(keys) > limit else ''})" if keys else ""


def _hint(card: ModelCard, shaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Says `:num_classes=N` where all that differs is as many rows as there are classes."""
    rows = {file[0] if file and len(file) == len(wanted) else -1 for file, wanted in shaped.values()}
    only_rows = all(file[1:] == wanted[1:] and wanted[:1] == (card.num_classes,) for file, wanted in shaped.values())
    if len(rows) == 1 and only_rows and min(rows) > 0:
        return f"; for its {min(rows)} classes ask for {card.name}:num_classes={min(rows)}"
    return ""
