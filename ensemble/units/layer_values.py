"""What an image makes of a layer, as a file of numbers that a selection can name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from ensemble.image.files import read_image
from ensemble.machine.files import user_path, why_unwritable, write_bytes
from ensemble.machine.output_folder import writing
from ensemble.objectives.selection import parse_layer
from ensemble.runs.plan import unique_names
from ensemble.teachers.teacher import Teacher
from models import create_model


def write_layer_values(model: str, layer: str, image: str | Path, file: str | Path) -> None:
    """The value of `layer` for one picture, (C, ...), as a .npy file.

    "LAYER:mask=FILE" with `reduction: dot_cos` then asks for a caricature of the picture (Olah et al. 2018), which is
    resized to the network's input. ValueError for a layer or a picture that is not there, a layer of another network,
    or a file that is there or cannot be written.
    """
    target = user_path(file)
    if target.suffix != ".npy":
        raise ValueError(f"{target} is not the name of such a file; let it end in .npy")
    if target.exists():
        raise ValueError(f"{target} exists; give another name")
    if why := why_unwritable(target.absolute().parent):
        raise ValueError(f"{target} cannot be written, {why}; give another name")
    net, card = create_model(model)
    teacher = Teacher(card.name, net, card)
    named, tap = parse_layer(layer)
    (own,) = unique_names([model])
    if named not in ("", own):
        raise ValueError(f"{layer!r}: the network is called {own!r}, not {named!r}; leave the name out")
    teacher.tap([tap], alone=True)
    view = read_image(image, card.input_size)[None]
    with torch.no_grad():
        value = teacher.observe(view).taps[tap][0]
    buffer = io.BytesIO()
    np.save(buffer, value.numpy())
    with writing(target):
        write_bytes(target, buffer.getvalue())
