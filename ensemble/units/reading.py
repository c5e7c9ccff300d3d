"""What is read of images that units prefer."""

from __future__ import annotations

from typing import Any

import torch

from ensemble.data.shards import own_labels
from ensemble.image.pictures import to_eight_bits
from ensemble.runs.results import Results
from ensemble.units.excitation import Readers
from ensemble.units.preferred import Preferred
from ensemble.units.real import RealExcitations
from ensemble.units.receptive_field import receptive_field
from ensemble.units.robustness import CHANGES


def read_preferred(results: Results, readers: Readers, real: torch.Tensor | None) -> Preferred:
    """What is said of images from their saved 8 bits, beside `real` ones (N, 3, H, W), uint8, where there are any."""
    saved = to_eight_bits(results.images).float() / 255
    which = [i % len(readers.names) for i in range(len(saved))]
    clean = readers.own(saved, which)
    changed = {name: readers.own(change(saved), which) for name, change in CHANGES.items()}
    of_real = {} if real is None else readers.each(real)
    scales = {name: RealExcitations.of(found) for name, found in of_real.items()}
    fields = _receptive_fields(readers, saved.shape[-1])
    classes = readers.classes
    rows = []
    for i, k in enumerate(which):
        known = classes[k]
        row: dict[str, Any] = {"image": i, "unit": readers.names[k], "of_class": known is not None}
        if known is not None and (labels := own_labels(known[0])):
            row["class"] = labels[known[1]]
        if fields[k] is not None:
            row["receptive_field"] = fields[k]
        for name, excited in clean.items():
            prefix = f"{name}/" if len(clean) > 1 else ""
            if not readers.is_named(name, k):
                continue
            a = float(excited[i])
            row[f"{prefix}activation"] = a
            row |= {
                f"{prefix}{change}": float(found[name][i]) / a if a > 0 else None for change, found in changed.items()
            }
            if name in scales:
                scale = scales[name]
                mean, std, largest = (float(v[k]) for v in (scale.mean, scale.std, scale.largest))
                row |= {f"{prefix}mean": mean, f"{prefix}std": std, f"{prefix}largest": largest}
                row[f"{prefix}z"] = (a - mean) / std if std else None
                row[f"{prefix}of_largest"] = a / largest if largest > 0 else None
                row[f"{prefix}above"] = a > largest
        rows.append(row)
    top = None
    if real is not None:
        top = real[RealExcitations.of(torch.stack([*of_real.values()]).mean(0)).top]
    return Preferred(results, tuple(readers.names), rows, top)


def _receptive_fields(readers: Readers, size: int) -> list[list[int] | None]:
    """Of units at one place; those of other channels at the same place are taken to see the same.

    A unit that is silent on the noise tells no box, so the place has that of the first that tells one.
    """
    of_networks = readers.parts
    known: dict[object, list[int]] = {}
    places: list[object] = []
    for k in range(len(readers.names)):
        parts = [(name, unit) for name, units in of_networks.items() for unit in units[k]]
        if not parts or not all(unit.position for _, unit in parts):
            places.append(None)
            continue
        place = tuple((name, unit.tap, unit.position) for name, unit in parts)
        places.append(place)
        if not any(known.get(place, ())):
            known[place] = list(receptive_field(readers, k, size))
    return [None if place is None else known[place] for place in places]
