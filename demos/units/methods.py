"""The same ten units of ResNet-20 by every way to make their preferred images: a row a way.

python demos/units/methods.py --output results/methods.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ensemble import prefer
from ensemble.image.pictures import draw_grid

UNITS = ("layer2.2:0-3", "logits:1,3,4,5,7,8")
WAYS: dict[str, dict[str, Any]] = {
    "fourier": {"method": "fourier"},
    "gd": {"method": "gd"},
    "lbfgs": {"method": "lbfgs"},
    "maco": {"method": "maco"},
    "gd, generator": {"method": "gd", "generator": "feature_inverter"},
    "lbfgs, generator": {"method": "lbfgs", "generator": "feature_inverter"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output: Path = parser.parse_args().output
    rows = []
    for name, way in WAYS.items():
        made = prefer("resnet20_cifar", UNITS, **way)
        assert made is not None
        print(f"{name}: {sum(row['activation'] for row in made.rows):.1f} over all units")
        rows.append(made.images)
    which = torch.arange(len(rows)).repeat_interleave(len(rows[0]))
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(torch.cat(rows), which, tuple(WAYS)).save(output)


if __name__ == "__main__":
    main()
