"""Trained weights on disk: in fp32 beside a run, and rounded as the bundled weights that `models` reads."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.machine.files import read_json, write_bytes, write_json
from ensemble.training.reading import evaluate
from models import NETWORK, ModelCard, WeightsFile, fit
from models.edge_popup import compact, load_subnet, subnet_layers
from models.pruned import METADATA, is_pruned

LICENCE = "MIT"


@dataclass(frozen=True)
class Provenance:
    """What the record of bundled weights says about their origin."""

    trained_on: str
    command: str


def save_weights(net: nn.Module, path: Path, card: ModelCard, spec: str = "") -> None:
    """Writes the network's state as safetensors, whole or not at all; the file says what `card` does of it.

    Those are the classes, the label space, input size, mean and std, which `models.create_model` reads back, and the
    network's name and options, as `spec` has them (by default the card's name), which it tells where the weights do not
    fit another. An edge-popup subnet is stored compactly, as
    its masks; a pruned network as the narrower one that it is.
    """
    state, metadata = compact(net) if subnet_layers(net) else (net.state_dict(), {})
    if is_pruned(net):
        metadata = metadata | {METADATA: "true"}
    network = spec.partition("@")[0] or card.name
    write_bytes(path, _serialised(state, metadata | _about(card) | {NETWORK: network}))


def export_weights(
    net: nn.Module,
    card: ModelCard,
    folder: Path,
    provenance: Provenance,
    test_set: LabelledImages,
    device: torch.device,
) -> float:
    """The top-1 accuracy in [0, 1] of what is written: `folder`/NAME.safetensors and NAME.json, its record.

    Parameters are rounded to fp16, buffers (BatchNorm's running statistics) stay in fp32; of an edge-popup
    subnet, masks are written. Raises ValueError where a parameter is too large for fp16.
    """
    is_subnet = bool(subnet_layers(net))
    state, metadata = compact(net) if is_subnet else (_rounded(net), {})
    metadata |= _about(card)
    data = _serialised(state, metadata)
    file = folder / f"{card.name}.safetensors"
    written = WeightsFile(file, load(data), metadata)
    if overflown := [key for key, value in written.tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"export: {', '.join(overflown[:3])} of {card.name} do not fit into fp16")
    rounded = copy.deepcopy(net)
    if is_subnet:
        rounded = load_subnet(rounded, written, card)
    else:
        fit(rounded, written.tensors, card, str(file))
    accuracy = evaluate(rounded, card, test_set, device)
    record = {
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": LICENCE,
        "trained_on": provenance.trained_on,
        "accuracy": accuracy,
        "command": provenance.command,
    }
    write_json(folder / f"{card.name}.json", record)  # first: it says whose a file is that a kill left out
    write_bytes(file, data)
    return accuracy


def check_own(folder: Path, name: str, provenance: Provenance) -> None:
    """ValueError where the bundled weights of this name in `folder` are there and their record says another origin."""
    file, beside = (folder / f"{name}.{ending}" for ending in ("safetensors", "json"))
    record = read_json(beside) if beside.is_file() else None
    said = record if isinstance(record, dict) else {}
    own = provenance.command and said.items() >= {**vars(provenance)}.items()
    if (file.exists() or record is not None) and not own:
        raise ValueError(f"export: {file} is another training's; give another folder, or move it away")


def _rounded(net: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(net.named_parameters())
    return {key: value.half() if key in parameters else value for key, value in net.state_dict().items()}


def _serialised(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, the same bytes at every save: the library writes the metadata in an order that varies."""
    data = save(_stored(state), dict(metadata))
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start]) | {"__metadata__": dict(metadata)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + data[start:]


def _stored(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # BatchNorm's batch counters are of no use in eval mode; clones, because safetensors refuses shared memory
    return {
        key: value.cpu().contiguous().clone() for key, value in state.items() if not key.endswith("num_batches_tracked")
    }


def _about(card: ModelCard) -> dict[str, str]:
    about = {
        "num_classes": card.num_classes,
        "input_size": card.input_size,
        "class_names": card.class_names,
        "label_space": card.label_space,
        "mean": card.mean,
        "std": card.std,
    }
    return {"card": json.dumps(about), NETWORK: card.name}
