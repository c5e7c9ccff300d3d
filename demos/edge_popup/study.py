"""Why could "A Journey Inside DeepInversion" not invert an edge-popup subnet? One table and one picture.

    python demos/edge_popup/study.py --data cifar10.tar.xz --judges A B C --dense DIR --subnet30 DIR --output DIR

A subnet and a dense network of the same architecture (ResNet-20 of twice the width) and accuracy class are inverted
with everything in place, and with one thing broken at a time, once per seed; a run that is finished is not made
again. `--dense` and `--subnet30` are the training folders of the dense network and of a subnet found at k = 30 %
(README.md says how to make both). Intervals are 95 % over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from ensemble import Recipe, Results, create_model, invert, load_recipe, register_model
from ensemble.data.labelled import load_images
from ensemble.evaluation.estimate import mean_interval
from ensemble.evaluation.judge import Judge
from ensemble.image.pictures import draw_grid
from ensemble.machine.files import read_json, write_json, write_text
from ensemble.machine.rng import generator
from ensemble.recipe import TeacherEntry
from ensemble.training.reading import recalibrate_bn

SUBNET, WIDE = "resnet20_popup_cifar", "resnet20_cifar:width=2"
SEES = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
"""What a training checkpoint does not say of its network."""
DENSE_ENSEMBLE = ("resnet20_cifar", "vgg16_bn_slim_cifar", "wrn16_2_cifar")
NO_BN = "objectives=[{kind: cross_entropy, weight: 10.0, temperature: 4.0}, {kind: tv, weight: 1e-3}]"
SCORE = "objectives=[{kind: class_score, weight: 1.0}, {kind: bn_matching, weight: 10.0}, {kind: tv, weight: 1e-3}]"

Judged = dict[str, dict[str, Any]]
"""By judge: the fields of its Judgement."""


def reset(net: nn.Module) -> nn.Module:
    """Running statistics 0 and 1, as in a network that never kept any."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return net


def measured_on_noise(net: nn.Module) -> nn.Module:
    """Running statistics of Gaussian noise in the normalised space, N(0, 1)."""
    recalibrate_bn(net, torch.randn(1000, 3, 32, 32, generator=generator(0, "noise")))
    return net


def register(name: str, spec: str, change: Callable[[nn.Module], nn.Module]) -> str:
    """The name of a network that is `spec`, changed."""
    net, card = create_model(spec)

    @register_model(replace(card, name=name, weights={}, default_weights=None))
    def changed() -> nn.Module:
        return change(net)

    return f"{name}@random"  # the factory's own initialisation, which is what `change` made


def case(*teachers: str, change: str = "") -> Recipe:
    """One row of the table: teachers, and what is changed in the recipe."""
    recipe = load_recipe("edge_popup", "verifiers=[]", *filter(None, [change]))
    return replace(recipe, teachers=tuple(TeacherEntry(name) for name in teachers))


def cases(dense_folder: Path, subnet30: Path) -> dict[str, Recipe]:
    """Name of each row -> what is run."""
    table = {}
    dense = f"{WIDE}@{dense_folder / 'weights.safetensors'}"
    for kind, spec, untrained in (("subnet", SUBNET, f"{SUBNET}@random"), ("dense", dense, f"{WIDE}@random")):
        table[f"{kind}: as stored"] = case(spec)
        table[f"{kind}: statistics 0 and 1"] = case(register(f"{kind}_reset", spec, reset))
        table[f"{kind}: statistics of noise"] = case(register(f"{kind}_noise", spec, measured_on_noise))
        table[f"{kind}: weights not loaded"] = case(untrained)
        table[f"{kind}: no BN term"] = case(spec, change=NO_BN)
        table[f"{kind}: raw class score"] = case(spec, change=SCORE)
    table["subnet of 30 %: as stored"] = case(f"popup/{WIDE},k=30@{subnet30 / 'weights.safetensors'}")
    # the scores are in the training checkpoint alone; the BN statistics stay those of 30 %
    table["subnet of 30 %: mask at 50 %"] = case(f"popup/{WIDE},k=50,{SEES}@{subnet30 / 'checkpoint.pt'}")
    table["three dense teachers"] = case(*DENSE_ENSEMBLE)
    table["three dense teachers and the subnet"] = case(*DENSE_ENSEMBLE, SUBNET)
    table["three dense teachers and the dense wide one"] = case(*DENSE_ENSEMBLE, dense)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judges", required=True, nargs="+", action="extend", metavar="MODEL", help="no teachers")
    parser.add_argument("--dense", required=True, type=Path, metavar="DIR")
    parser.add_argument("--subnet30", required=True, type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--output", type=Path, default=Path("results/edge_popup"))
    options = parser.parse_args()
    judges = {}
    for name in options.judges:
        net, card = create_model(name)
        judges[name] = Judge(net, card, load_images(options.data, "test", card.input_size))
    table = cases(options.dense, options.subnet30)
    made: dict[str, list[Results]] = {name: [] for name in table}
    judged: dict[str, list[Judged]] = {name: [] for name in table}
    for seed in range(options.seeds):  # whole rounds first: an interrupted study has every case
        for name, recipe in table.items():
            folder = options.output / f"seed{seed}" / name.replace(": ", "_").replace(" %", "").replace(" ", "-")
            made[name].append(make(recipe, seed, folder))
            judged[name].append(judge_case(made[name][-1], folder, judges))
            print(f"seed {seed}: {name}", flush=True)
    print_table(options.output, made, judged, options.judges)
    picture(options.output, made)


def make(recipe: Recipe, seed: int, folder: Path) -> Results:
    """The case's images, made unless they are there."""
    results = invert(recipe, seed=seed, output=folder, resume=True)
    assert results is not None, "one process"
    if results.summary.get("stopped"):
        raise KeyboardInterrupt
    return results


def judge_case(results: Results, folder: Path, judges: dict[str, Judge]) -> Judged:
    """What the judges say of the case's images, asked unless it is there and no older than these."""
    file = folder / "judged.json"
    if file.exists() and file.stat().st_mtime >= (folder / "summary.json").stat().st_mtime:
        judged = read_json(file)
        if judges.keys() <= judged.keys():
            return judged
    judged = {name: asdict(judge(results.images, results.targets)) for name, judge in judges.items()}
    write_json(file, judged)
    return judged


def print_table(
    output: Path, made: dict[str, list[Results]], judged: dict[str, list[Judged]], judges: list[str]
) -> None:
    """Markdown, also written to table.md."""
    names = [name.partition("@")[0] for name in judges]
    heads = ["case", "teachers read", *(f"{n} reads" for n in names), f"Fréchet, {names[0]}", "BN loss"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, of_seeds in judged.items():
        teachers = [results.summary["teachers"].values() for results in made[name]]
        own = mean_interval([mean(t["accuracy"] for t in each) for each in teachers], 2)
        read = [mean_interval([j[judge]["accuracy"]["top1"] for j in of_seeds], 2) for judge in judges]
        distance = mean_interval([j[judges[0]]["frechet"] for j in of_seeds], 2)
        bn = [mean(t["bn_matching"] for t in each) for each in teachers if all("bn_matching" in t for t in each)]
        lines.append(f"| {name} | {own} | {' | '.join(read)} | {distance} | {mean_interval(bn, 2) if bn else ''} |")
    write_text(output / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def picture(output: Path, made: dict[str, list[Results]]) -> None:
    """One row per case of a single network: the first image of each class, seed 0."""
    rows = [name for name in made if not name.startswith("three")]
    first = [of_seeds[0] for name, of_seeds in made.items() if name in rows]
    chosen = [r.images[[int((r.targets == c).nonzero()[0]) for c in range(10)]] for r in first]
    grid = draw_grid(torch.cat(chosen), torch.arange(len(rows)).repeat_interleave(10), rows)
    grid.save(output / "cases.png")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
