"""Preferred images of units, in one call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ensemble.api import invert
from ensemble.data.labelled import any_images
from ensemble.image.pictures import draw_grid, to_eight_bits
from ensemble.machine.environment import launched_rank
from ensemble.machine.hardware import settings_kept
from ensemble.machine.words import plural
from ensemble.objectives.activation import Activation
from ensemble.runs.folder import TOP_SHEET, UNITS_ALPHA, UNITS_SHEET, ResultsFolder
from ensemble.runs.networks import Named, named_networks
from ensemble.runs.plan import unique_names
from ensemble.runs.results import Results
from ensemble.teachers.taps import LOGITS
from ensemble.units import METHODS
from ensemble.units.excitation import Readers
from ensemble.units.methods import fields_of
from ensemble.units.real import RealExcitations
from ensemble.units.receptive_field import receptive_field
from ensemble.units.robustness import CHANGES
from models import ModelCard, create_model

_FOLLOWS = re.compile(r".*(objectives|targets|images_per_class|teachers)")
_FREE = re.compile(r"objectives\[(0\]\.(weight|reduction|power)$|[1-9]\d*\])|teachers\[\d+\]\.(?!model$)")
"""Among fields of objectives and teachers, those that leave the units what they are."""

REAL_IMAGES = 2000
"""Of `real`, so many are read, drawn by seed 0."""


@dataclass(frozen=True, eq=False)
class Preferred:
    """What units prefer: image i is for unit i % len(names)."""

    results: Results
    names: tuple[str, ...]
    rows: list[dict[str, Any]]
    """A row an image: its unit, and where that is at one place, the box of pixels that it sees (top, left, bottom,
    right); `activation`, read from the saved 8 bits in fp32; what is left of it after JPEG, a blur and a rescaling; and
    with real images their `mean`, `std` and `largest`, `z` = (activation - mean) / std, `of_largest` =
    activation / largest, None where that is not above 0, and `above`: whether the activation is the larger."""
    top: torch.Tensor | None = None
    """(units, T, 3, H, W), uint8: the real images that excite each unit most."""

    @property
    def warnings(self) -> list[str]:
        """A line for what a user should know."""
        still = [row["unit"] for row in self.rows if any(row[key] == 0 for key in row if key.endswith("activation"))]
        if not still:
            return []
        first = ", ".join(still[:3])
        return [
            f"{plural(len(still), 'unit')} stayed at 0, where a rectified layer has no gradient ({first}); tap before "
            "the activation, or try another --seed"
        ]

    @property
    def images(self) -> torch.Tensor:
        """(N, 3, H, W), RGB in [0, 1]."""
        return self.results.images

    def sheet(self, columns: int = 10) -> Image.Image:
        """All images with the names of their units."""
        return draw_grid(self.images, self._units(), self.names, columns, noun="units")

    def alpha_sheet(self, percentile: float = 80) -> Image.Image | None:
        """As `sheet`, faded to white where the gradient seldom went; None without `attribution=True`.

        Opacity is the attribution over its `percentile` of the image, at most 1 (after Fel et al. 2023, MACO).
        """
        maps = self.results.attribution
        if maps is None:
            return None
        bound = maps.flatten(1).quantile(percentile / 100, dim=1)[:, None, None].clamp_min(1e-30)
        opacity = (maps / bound).clamp(max=1)[:, None]
        return draw_grid(self.images * opacity + 1 - opacity, self._units(), self.names, noun="units")

    def top_sheet(self) -> Image.Image | None:
        """The real images that excite each unit most, a row a unit; None without real images."""
        if self.top is None:
            return None
        units, each = self.top.shape[:2]
        rows = torch.arange(units).repeat_interleave(each)
        return draw_grid(self.top.flatten(0, 1).float() / 255, rows, self.names, noun="units")

    def _units(self) -> torch.Tensor:
        return torch.arange(len(self.images)) % len(self.names)


@settings_kept()
def prefer(
    models: Named | nn.Module | Sequence[Named | Mapping[str, Any]],
    units: str | Sequence[str],
    *,
    method: str = "fourier",
    images_per_unit: int = 1,
    size: int | None = None,
    generator: str | None = None,
    bn_matching: float = 0.0,
    real: str | Path | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    iterations: int | None = None,
    overrides: Sequence[str] = (),
    **fields: Any,
) -> Preferred | None:
    """The images that units of one or several networks prefer. Under torchrun ranks but 0 get None.

    `models` and `fields` are as in `invert`; `units` is a selection or several, as "layer3.0:0-15", "logits:cat" or
    "a/layer4:12 + b/blocks.9:301" (see `ensemble.objectives.selection`). `method` is one of METHODS; with a
    `generator`, `gd` and `lbfgs` move its code. Images are `size` pixels, by default the largest input size.
    `bn_matching` above 0 also matches the networks' BN statistics, with that weight beside each activation.
    `real` is a folder or archive of images, in folders or not, of whose `split` (by default `train`, or where there are
    no splits, of all) up to REAL_IMAGES are the scale, and `top` shows those that excite each unit most.

    Raises ValueError for mistakes, with one line each.
    """
    for name, number in (("images_per_unit", images_per_unit), ("size", size)):
        if number is not None and (not isinstance(number, Integral) or number < 1):
            raise ValueError(f"{name}: a whole number from 1 on, not {number!r}")
    if not isinstance(bn_matching, Real):
        raise ValueError(f"bn_matching: a weight, not {bn_matching!r}")
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is none; choose {', '.join(METHODS)}")
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    _check_free(fields, overrides)
    listed = _listed(models)
    if not isinstance(units, str) and (not isinstance(units, Sequence) or not all(isinstance(u, str) for u in units)):
        raise ValueError(f'units: a selection or a list of some, as "layer3.0:0-15", not {units!r}')
    named = [entry["model"] if isinstance(entry, Mapping) else entry for entry in listed]
    own = {key: fields.get(key, empty) for key, empty in _OWN.items()}
    networks = _networks(named, own)
    term = Activation((units,) if isinstance(units, str) else tuple(units))
    readers = Readers(networks, term)
    cards = [card for _, card in networks.values()]
    images = int(images_per_unit) * len(readers.names)
    recipe = fields_of(
        method,
        readers.term,
        size=max(card.input_size for card in cards) if size is None else int(size),
        networks=len(networks),
        images=images,
        generator=generator,
        bn_matching=bn_matching,
        placed=_placed(readers),
    )
    idle = [profile.name for profile in readers.profiles if not any(readers.term.units_of(profile))]
    if idle and not bn_matching and "terms" not in fields and not any("objectives" in text for text in overrides):
        raise ValueError(f"units: no selection names {', '.join(idle)}; leave it out, or add {idle[0]}/LAYER:CHANNELS")
    classes = _classes(readers)
    recipe |= {"targets": classes or [0], "images_per_class": int(images_per_unit) if classes else images}
    if output is not None and not resume:
        ResultsFolder(Path(output).expanduser()).check(overwrite=overwrite)
    scale = None if real is None else any_images(real, split, recipe["image"]["size"], at_most=REAL_IMAGES).images
    results = invert(
        listed,
        *overrides,
        output=output,
        resume=resume,
        overwrite=overwrite,
        **recipe | ({} if iterations is None else {"iterations": iterations}) | fields,
    )
    if results is None or launched_rank():
        return None
    readers.term = next(term for term in results.recipe.objectives if isinstance(term, Activation))
    preferred = _read(results, readers, scale, of_class=bool(classes))
    if output is not None:
        folder = ResultsFolder(Path(output).expanduser())
        sheets = {
            UNITS_SHEET: preferred.sheet(),
            TOP_SHEET: preferred.top_sheet(),
            UNITS_ALPHA: preferred.alpha_sheet(),
        }
        folder.write_units(preferred.rows, sheets)
    return preferred


def _check_free(fields: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """ValueError for what would part the images from the units that they are said to be for."""
    for name in [*fields, *(text.partition("=")[0].strip() for text in overrides)]:
        if _FOLLOWS.match(name) and _FREE.match(name) is None:
            raise ValueError(f"{name}: it follows from `units` and `images_per_unit`; name other units, or use invert")
    terms = fields.get("terms", ())
    if any(isinstance(term, Activation) for term in (terms if isinstance(terms, Sequence) else [terms])):
        raise ValueError("terms: what is to be excited is named by `units`")


def _listed(models: Any) -> list[Any]:
    """The networks as a list; ValueError where it holds none, or something else."""
    listed = [models] if isinstance(models, str | Path | nn.Module | tuple | Mapping) else models
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"models: name one network or several, not {models!r}")
    for entry in listed:
        if isinstance(entry, Mapping) and "model" not in entry:
            raise ValueError(f'models: each is a network or {{"model": ..}}, not {entry!r}')
    return [str(entry) if isinstance(entry, Path) else entry for entry in listed]


_OWN: dict[str, Any] = {"input_size": None, "mean": None, "std": None, "class_names": ()}


def _networks(named: Sequence[Named], own: Mapping[str, Any]) -> dict[str, tuple[nn.Module, ModelCard]]:
    """The networks by the names that runs give them."""
    names, modules = named_networks(named, {}, **own)
    found = [modules[name] if name in modules else create_model(name) for name in names]
    return dict(zip(unique_names(names), found, strict=True))


def _classes(readers: Readers) -> list[int]:
    """The units' classes, where each unit is one; they are the images' targets."""
    units = readers.term.units_of(readers.profiles[0])
    single = [several[0] for several in units if len(several) == 1 and len(several[0].channels) == 1]
    classes = [unit.channels[0] for unit in single if unit.tap.layer == LOGITS]
    return classes if len(classes) == len(units) else []


def _placed(readers: Readers) -> bool:
    """Whether units are at places that a view of another size has not, or elsewhere."""
    units = [u for profile in readers.profiles for several in readers.term.units_of(profile) for u in several]
    return any(unit.whole or unit.position.startswith("t=") or "," in unit.position for unit in units)


def _receptive_fields(readers: Readers, size: int) -> list[list[int] | None]:
    """Of units at one place; those of other channels at the same place are taken to see the same."""
    known: dict[object, list[int]] = {}
    found: list[list[int] | None] = []
    for k, units in enumerate(readers.term.units_of(readers.profiles[0])):
        places = tuple((unit.tap, unit.position) for unit in units)
        if not units or not all(unit.position for unit in units):
            found.append(None)
            continue
        if places not in known:
            known[places] = list(receptive_field(readers, k, size))
        found.append(known[places])
    return found


def _read(results: Results, readers: Readers, real: torch.Tensor | None, *, of_class: bool) -> Preferred:
    saved = to_eight_bits(results.images).float() / 255
    which = [i % len(readers.names) for i in range(len(saved))]
    clean = readers.own(saved, which)
    changed = {name: readers.own(change(saved), which) for name, change in CHANGES.items()}
    of_real = {} if real is None else readers.each(real)
    scales = {name: RealExcitations.of(found) for name, found in of_real.items()}
    fields = _receptive_fields(readers, saved.shape[-1])
    rows = []
    for i, k in enumerate(which):
        row: dict[str, Any] = {"image": i, "unit": readers.names[k], "of_class": of_class}
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
