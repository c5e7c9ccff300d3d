"""Preferred images of random units: what they reach, what is left of it, and whether other networks agree.

    python -m tests.benchmarks.units --real DATA --model A --layer LAYER [--layer LAYER ...] --partner B --judge C
        --output DIR [--units 50] [--arms fourier gd lbfgs maco fourier+bn joint ...] [--iterations N]

For each layer of A so many units, drawn by seed 0. An arm is a method of `invert.py units`; `METHOD+bn` adds BN
matching (weight BN), `METHOD+views` sees the image as `fourier` does, `joint` makes one image (fourier) for the unit
and its best match in B. All is judged on the saved 8 bits, against 2,000 real images of the split `train`:

- how many units are excited more than by any of these images;
- how many keep 0.8 of it under JPEG, a blur, and rescaling;
- transfer: in C, which made no image, the unit is matched by correlation over half of the real images; its response to
  our image is in standard deviations over the other half, against that of the unit matched with another of our units
  (shuffled). The 95 % intervals are over units, by bootstrap;
- units of the class layer are read by C.

Runs that are there are not made again. Prints tables, writes figures.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ensemble.data.labelled import load_images
from ensemble.machine.rng import generator
from ensemble.objectives.activation import Activation
from ensemble.runs.plan import unique_names
from ensemble.runs.results import Results
from ensemble.teachers.layers import layers_of
from ensemble.units.excitation import Readers
from ensemble.units.matching import channel_means, correlation
from ensemble.units.prefer import prefer
from ensemble.units.preferred import Preferred
from ensemble.units.robustness import CHANGES
from models import create_model, network_input

REAL, BN = 2000, 1.0
VIEWS = ("stages[0].size=26", "stages[0].zoom=0.75", "stages[0].noise=0.1")
"""Of images of 32 pixels."""


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """The mean, and its 95 % interval over units by bootstrap."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def drawn_units(model: str, layer: str, count: int) -> list[int]:
    net, card = create_model(model)
    if layer == "logits":
        channels = card.num_classes
    else:
        shapes = {row.name: row.output for row in layers_of(net, card)}
        channels = (shapes[layer] or (0,))[0]
    return sorted(torch.randperm(channels, generator=generator(0, "units"))[:count].tolist())


class Judge:
    """A network that made no image: units are matched to its own, and it responds."""

    def __init__(self, model: str, real: torch.Tensor) -> None:
        (self.name,) = unique_names([model])
        self.network = create_model(model)
        self.real = torch.cat([*channel_means(self.name, self.network, real).values()], 1)

    def transfer(self, own: torch.Tensor, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Correlation of each unit with its match; the match's z for our image; that of another unit's match."""
        half = len(self.real) // 2
        r, match = correlation(own[:half], self.real[:half]).max(1)
        responses = torch.cat([*channel_means(self.name, self.network, images).values()], 1)
        mean, std = self.real[half:].mean(0), self.real[half:].std(0).clamp_min(1e-6)
        z = (responses - mean) / std
        each = torch.arange(len(images))
        other = match.roll(1)
        return r.numpy(), z[each, match].double().numpy(), z[each, other].double().numpy()


def made(arm: str, model: str, units: list[str], partners: list[str], folder: Path, options: Any) -> Preferred:
    method, _, more = arm.partition("+")
    joint = arm == "joint"
    selections = [f"{a} + {b}" for a, b in zip(units, partners, strict=True)] if joint else units
    finished = (folder / "summary.json").exists() and (folder / "units.jsonl").exists()
    if finished:
        rows = [json.loads(line) for line in (folder / "units.jsonl").read_text().splitlines()]
        return Preferred(Results.open(folder), tuple(row["unit"] for row in rows), rows)
    found = prefer(
        [model, options.partner] if joint else model,
        selections,
        method="fourier" if joint else method,
        bn_matching=BN if more == "bn" else 0.0,
        overrides=VIEWS if more == "views" else (),
        real=options.real,
        output=folder,
        overwrite=folder.exists(),
        iterations=options.iterations,
        progress=False,
    )
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layer", action="append", required=True)
    parser.add_argument("--partner", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--units", type=int, default=50)
    parser.add_argument("--arms", nargs="+", default=["fourier", "fourier+bn", "joint"])
    parser.add_argument("--iterations", type=int, default=None)
    options = parser.parse_args()
    (name,) = unique_names([options.model])
    network = create_model(options.model)
    size = network[1].input_size
    real = load_images(options.real, "train", size, at_most=REAL).images
    judge, partner = Judge(options.judge, real), Judge(options.partner, real)
    table = Table(
        "layer",
        "arm",
        "units",
        "above real",
        *[f"keep .8: {c}" for c in CHANGES],
        "r",
        "z of match",
        "shuffled",
        "read",
        "s an image",
    )
    lines = []
    for layer in options.layer:
        channels = drawn_units(options.model, layer, options.units)
        units = [f"{name}/{layer}:{k}" for k in channels]
        own = Readers({name: network}, Activation(tuple(units)))(real)
        half = len(real) // 2
        best = correlation(own[:half], partner.real[:half]).argmax(1).tolist()
        listed = [
            f"{partner.name}/{place}:{k}"
            for place, values in channel_means(partner.name, partner.network, real[:2]).items()
            for k in range(values.shape[1])
        ]
        partners = [listed[k] for k in best]
        for arm in options.arms:
            found = made(arm, options.model, units, partners, options.output / f"{layer}_{arm}", options)
            key = f"{name}/" if arm == "joint" else ""
            ratio = np.array([row[f"{key}of_largest"] or 0.0 for row in found.rows])
            above = float(np.mean([row[f"{key}above"] for row in found.rows]))
            kept = {c: np.array([row[f"{key}{c}"] or 0.0 for row in found.rows]) for c in CHANGES}
            r, z, shuffled = judge.transfer(own, (found.images * 255).round() / 255)
            row: dict[str, Any] = {"layer": layer, "arm": arm, "units": len(units), "above": above}
            row |= {"median_ratio": float(np.median(ratio))}
            row |= {f"kept_{c}": float((values >= 0.8).mean()) for c, values in kept.items()}
            row |= {
                "r": float(r.mean()),
                "z": interval(z),
                "shuffled": interval(shuffled),
                "gain": interval(z - shuffled),
            }
            row |= {"z_each": z.tolist()}
            row["seconds"] = found.results.summary["wall_seconds"] / len(units)
            if layer == "logits":
                seen = judge.network[0].eval()(network_input(found.images, judge.network[1])).argmax(1)
                row["read"] = float((seen == torch.tensor(channels)).double().mean())
            lines.append(row)
            shown = [f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in (row["z"], row["shuffled"])]
            table.add_row(
                layer,
                arm,
                str(len(units)),
                f"{row['above']:.2f}",
                *(f"{row[f'kept_{c}']:.2f}" for c in CHANGES),
                f"{row['r']:.2f}",
                *shown,
                f"{row.get('read', float('nan')):.2f}",
                f"{row['seconds']:.2f}",
            )
            print(json.dumps({k: v for k, v in row.items() if k != "z_each"}), flush=True)
    Console(width=200).print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "figures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


if __name__ == "__main__":
    main()
