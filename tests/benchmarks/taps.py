"""Which layers of the zoos' networks can be tapped, and whether the values are the networks' own.

    python -m tests.benchmarks.taps --output results/taps.json [--zoo torchvision|timm|both] [--layers 12] [--size 96]

Every classifier of torchvision, and of timm one architecture a family (the smallest), with random weights, at `--size`
pixels where it takes them, else at its own input size. Of each network so many layers, spread over its depth, are
tapped in one pass, and compared with the copies that hooks of the untouched network make at once; in fp64 where they
differ in fp32, since some networks with random weights make rounding a billion times larger. Networks that are there
already are not tried again. Prints a table and what was refused, with the reason.
"""

from __future__ import annotations

import argparse
import gc
import re
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ensemble.machine.files import JsonLines, read_json_lines
from ensemble.teachers.layers import list_layers
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Teacher
from models import create_model, first_tensor, list_models, network_input

SMALL = re.compile("atto|femto|pico|nano|tiny|xxs|_xs|small|_s_|_s$|_s\\d|18|26|_b0|lite0|_t_|_t$")
"""Names of small ones; of a family without, the first is tried."""
TOLERANCE = 1e-3
"""Relative l2 distance of a value from the hook's copy: sums in another order."""


def networks(zoo: str) -> list[str]:
    names = [card.name for card in list_models("*")]
    found = []
    if zoo in ("torchvision", "both"):
        found += [name for name in names if "/" not in name and "cifar" not in name]
    if zoo in ("timm", "both"):
        families: dict[str, list[str]] = {}
        for name in (n for n in names if n.startswith("timm/")):
            families.setdefault(re.split(r"[_\d]", name.removeprefix("timm/"))[0], []).append(name)
        found += sorted(next((n for n in family if SMALL.search(n)), family[0]) for family in families.values())
    return found


@torch.no_grad()
def tried(name: str, size: str, layers: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """One network: how many layers it has, how many taps were tried, refused or differed."""
    row: dict[str, Any] = {"network": name}
    began = time.perf_counter()
    try:
        net, card = create_model(f"{name}{size}@random")
        net.eval().to(dtype)
        row["size"] = card.input_size
        view = torch.rand(2, 3, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
        view = view.to(dtype)
        x = network_input(view, card)
        listed = [layer for layer in list_layers(net, lambda n: net(x[:n])) if layer.calls and layer.kind != "function"]
        chosen = [layer.name for layer in listed[:: max(1, len(listed) // layers)]]
        caught: dict[str, Any] = {}

        def keeping(layer: str) -> Any:
            def hook(_: nn.Module, __: object, output: object) -> None:
                if (first := first_tensor(output)) is not None:
                    caught.setdefault(layer, first.clone())

            return hook

        handles = [net.get_submodule(layer).register_forward_hook(keeping(layer)) for layer in chosen]
        net(x)
        for handle in handles:
            handle.remove()
        row |= {"layers": len(listed), "tried": 0, "refused": {}, "different": {}}
        teacher = Teacher(name, net, card, dtype=dtype)
    except Exception as error:  # a network may be anybody's
        return row | {"error": f"{type(error).__name__}: {error}"[:200]}
    good = []
    for layer in chosen:
        row["tried"] += 1
        try:
            teacher.tap([Tap(layer)], alone=False)
            good.append(layer)
        except ValueError as error:
            row["refused"][layer] = str(error)[:200]
    if good:
        teacher.tap([Tap(layer) for layer in good], alone=False)
        for tap, value in teacher.observe(view).taps.items():
            expected = caught[tap.layer]
            orders = [each for each in (expected, expected.movedim(-1, 1)) if each.shape == value.shape]
            gap = min(float((value - each).norm() / each.norm().clamp_min(1e-12)) for each in orders)
            if not gap <= TOLERANCE:
                row["different"][tap.layer] = gap
    if row["different"] and dtype == torch.float32:
        return tried(name, size, layers, torch.float64)
    return row | {"seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--zoo", choices=("torchvision", "timm", "both"), default="both")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--size", type=int, default=96)
    options = parser.parse_args()
    done = {row["network"] for row in read_json_lines(options.output)}
    with JsonLines(options.output) as lines:
        for name in networks(options.zoo):
            if name not in done:
                row = tried(name, f":input_size={options.size}", options.layers)
                if "error" in row:
                    row = tried(name, "", options.layers)
                lines.write(row)
                print(name, row.get("error") or f"{row['tried']} tried, {len(row['refused'])} refused", flush=True)
                gc.collect()
    rows = read_json_lines(options.output)
    built = [row for row in rows if "error" not in row]
    table = Table("networks", "built", "taps tried", "refused", "different")
    counts = (
        sum(row["tried"] for row in built),
        *(sum(len(r[key]) for r in built) for key in ("refused", "different")),
    )
    table.add_row(str(len(rows)), str(len(built)), *map(str, counts))
    Console().print(table)
    for row in rows:
        for layer, why in {**row.get("refused", {}), **row.get("different", {})}.items():
            print(f"{row['network']}: {layer}: {why}")
        if "error" in row:
            print(f"{row['network']}: {row['error']}")


if __name__ == "__main__":
    main()
