"""Trained weights on disk: in fp32 beside a run, and rounded as the bundled weights that `models` reads."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.machine.files import write_json
from ensemble.training.loop import evaluate
from models import ModelCard
from models._loading import fit, read_weights, sha256
from models.edge_popup import compact, load_subnet, subnet_layers

LICENCE = "MIT"


@dataclass(frozen=True)
class Provenance:
    """What the record of bundled weights says about their origin."""

    trained_on: str
    command: str


def save_weights(net: nn.Module, path: Path, card: ModelCard) -> None:
    """Writes the network's state as safetensors, whole or not at all; the file says what `card` does of it.

    Those are the classes, the label space, input size, mean and std: `models.create_model` reads them back. An
    edge-popup subnet is stored compactly, as its masks.
    """
    if subnet_layers(net):
        _save(*compact(net), path, card)
    else:
        _save({key: value.detach() for key, value in net.state_dict().items()}, {}, path, card)


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
    subnet, masks are written. The accuracy is that of the file read back. Raises ValueError where a parameter
    is too large for fp16.
    """
    metadata: dict[str, str] = {}
    parameters = dict(net.named_parameters())
    state = {key: value.detach().half() if key in parameters else value for key, value in net.state_dict().items()}
    if subnet_layers(net):
        state, metadata = compact(net)
    if overflown := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"export: {', '.join(overflown[:3])} of {card.name} do not fit into fp16")
    file = folder / f"{card.name}.safetensors"
    candidate = file.with_suffix(".partial.safetensors")
    try:
        _save(state, metadata, candidate, card)
        rounded, written = copy.deepcopy(net), read_weights(candidate)
        if metadata:
            rounded = load_subnet(rounded, written, card)
        else:
            fit(rounded, written.tensors, card, str(candidate))
        accuracy = evaluate(rounded, test_set, mean=card.mean, std=card.std, device=device)
        os.replace(candidate, file)
    finally:
        candidate.unlink(missing_ok=True)
    record = {
        "file": file.name,
        "sha256": sha256(file),
        "licence": LICENCE,
        "trained_on": provenance.trained_on,
        "accuracy": accuracy,
        "command": provenance.command,
    }
    write_json(folder / f"{card.name}.json", record)
    return accuracy


def _save(state: dict[str, torch.Tensor], metadata: dict[str, str], path: Path, card: ModelCard) -> None:
    about = {
        "num_classes": card.num_classes,
        "input_size": card.input_size,
        "class_names": card.class_names,
        "label_space": card.label_space,
        "mean": card.mean,
        "std": card.std,
    }
    # BatchNorm's batch counters are of no use in eval mode; clones, because safetensors refuses shared memory
    tensors = {
        key: value.cpu().contiguous().clone() for key, value in state.items() if not key.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(save(tensors, {**metadata, "card": json.dumps(about)}))
    os.replace(partial, path)
