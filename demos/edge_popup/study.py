"""Why could "A Journey Inside DeepInversion" not invert an edge-popup subnet? One table and one picture.

    python demos/edge_popup/study.py --data cifar10.tar.xz --judges A B C --dense DIR --subnet30 DIR --output DIR

A subnet and a dense network of the same architecture (ResNet-20 of twice the width) and accuracy class are inverted
with everything in place, and with one thing broken at a time, once per seed; a run that is finished is not made
again. `--dense` and `--subnet30` are the training folders of the dense network and of a subnet found at k = 30 %
(README.md says how to make both). Intervals are 95 % over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file
from torch import nn

from ensemble.data.labelled import load_images
from ensemble.evaluation.judge import Judge
from ensemble.evaluation.mean_interval import mean_interval
from ensemble.image.pictures import save_grid
from ensemble.machine.files import write_json
from ensemble.machine.rng import generator
from ensemble.training.loop import recalibrate_bn
from models import ModelCard, create_model, model_card, register_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # invert.py is a script at the top, not part of a package

import invert  # noqa: E402

RECIPE = ROOT / "recipes" / "edge_popup.yaml"
SUBNET, WIDE = "resnet20_popup_cifar", "resnet20_cifar:width=2"
DENSE_ENSEMBLE = ["resnet20_cifar", "vgg16_bn_slim_cifar", "wrn16_2_cifar"]
NO_BN = ["--set", "objectives=[{kind: cross_entropy, weight: 10.0, temperature: 4.0}, {kind: tv, weight: 1e-3}]"]
SCORE = [
    "--set",
    "objectives=[{kind: class_score, weight: 1.0}, {kind: bn_matching, weight: 10.0}, {kind: tv, weight: 1e-3}]",
]


@dataclass(frozen=True)
class Case:
    """One row of the table: teachers, and what is changed in the recipe."""

    teachers: list[str]
    changes: list[str]


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
    card = model_card(spec)
    shown = ModelCard(name, card.family, 32, 10, class_names=card.class_names, label_space=card.label_space)

    @register_model(shown)
    def changed(num_classes: int = 10) -> nn.Module:
        return change(create_model(spec)[0])

    return f"{name}@random"  # the factory's own initialisation, which is what `change` made


def cases(dense_folder: Path, subnet30: Path) -> dict[str, Case]:
    """Name of each row -> what is run."""
    table = {}
    dense = f"{WIDE}@{dense_folder / 'weights.safetensors'}"
    for kind, spec, untrained in (("subnet", SUBNET, f"{SUBNET}@random"), ("dense", dense, f"{WIDE}@random")):
        table[f"{kind}: as stored"] = Case([spec], [])
        table[f"{kind}: statistics 0 and 1"] = Case([register(f"{kind}_reset", spec, reset)], [])
        table[f"{kind}: statistics of noise"] = Case([register(f"{kind}_noise", spec, measured_on_noise)], [])
        table[f"{kind}: weights not loaded"] = Case([untrained], [])
        table[f"{kind}: no BN term"] = Case([spec], NO_BN)
        table[f"{kind}: raw class score"] = Case([spec], SCORE)
    table["subnet of 30 %: as stored"] = Case([f"popup/{WIDE},k=30@{subnet30 / 'weights.safetensors'}"], [])
    # the scores are in the training checkpoint alone; the BN statistics stay those of 30 %
    table["subnet of 30 %: mask at 50 %"] = Case([f"popup/{WIDE},k=50@{subnet30 / 'checkpoint.pt'}"], [])
    table["three dense teachers"] = Case(DENSE_ENSEMBLE, [])
    table["three dense teachers and the subnet"] = Case([*DENSE_ENSEMBLE, SUBNET], [])
    table["three dense teachers and the dense wide one"] = Case([*DENSE_ENSEMBLE, dense], [])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judges", required=True, nargs="+", metavar="MODEL", help="networks that are no teachers")
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
    for seed in range(options.seeds):  # whole rounds first: an interrupted study has every case
        for name, case in table.items():
            run_case(options.output / f"seed{seed}" / folder_name(name), case, seed, judges)
            print(f"seed {seed}: {name}", flush=True)
    print_table(options.output, table, options.seeds, judges)
    picture(options.output, table)


def folder_name(case: str) -> str:
    return case.replace(": ", "_").replace(" %", "").replace(" ", "-")


def run_case(folder: Path, case: Case, seed: int, judges: dict[str, Judge]) -> None:
    """Invert and judge, unless that is done."""
    if not (folder / "summary.json").exists():
        arguments = ["--recipe", str(RECIPE), "--models", *case.teachers, "--seed", str(seed), "--resume"]
        code = invert.main([*arguments, "--output", str(folder), "--set", "verifiers=[]", *case.changes])
        if code or not (folder / "summary.json").exists():
            raise SystemExit(code or "stopped; the same command goes on")
    if not (folder / "judged.json").exists():
        tensors = load_file(folder / "images.safetensors")
        judged = {name: judge(tensors["images"], tensors["targets"]) for name, judge in judges.items()}
        write_json(folder / "judged.json", judged)


def print_table(output: Path, table: dict[str, Case], seeds: int, judges: dict[str, Judge]) -> None:
    """Markdown, also written to table.md."""
    names = [name.partition("@")[0] for name in judges]
    heads = ["case", "teachers read", *(f"{n} reads" for n in names), f"Fréchet, {names[0]}", "BN loss"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in table:
        folders = [output / f"seed{seed}" / folder_name(name) for seed in range(seeds)]
        judged = [json.loads((folder / "judged.json").read_text()) for folder in folders]
        teachers = [json.loads((folder / "summary.json").read_text())["teachers"].values() for folder in folders]
        own = mean_interval([mean(t["accuracy"] for t in each) for each in teachers], 2)
        read = [mean_interval([j[judge]["accuracy"]["top1"] for j in judged], 2) for judge in judges]
        distance = mean_interval([j[next(iter(judges))]["frechet"] for j in judged], 2)
        bn = [mean(t["bn_matching"] for t in each) for each in teachers if all("bn_matching" in t for t in each)]
        lines.append(f"| {name} | {own} | {' | '.join(read)} | {distance} | {mean_interval(bn, 2) if bn else ''} |")
    (output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def picture(output: Path, table: dict[str, Case]) -> None:
    """One row per case of a single network: the first image of each class, seed 0."""
    rows = [name for name in table if not name.startswith("three")]
    images = [load_file(output / "seed0" / folder_name(name) / "images.safetensors") for name in rows]
    chosen = [t["images"][[int((t["targets"] == c).nonzero()[0]) for c in range(10)]] for t in images]
    save_grid(output / "cases.png", torch.cat(chosen), torch.arange(len(rows)).repeat_interleave(10), rows)


if __name__ == "__main__":
    main()
