"""What does the ensemble gain over its members, and by which choice? One table.

    python demos/ensemble_gain.py --data cifar10.tar.xz --judge NAME@FILE --output results/ensemble_gain

Judges are networks that were no teachers; each adds three columns.

Every case is the quickstart recipe with one thing changed, once per seed; a case that is finished is not run again.
A teacher pass is one teacher seeing the whole batch once. Intervals are 95 % over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from safetensors.torch import load_file

from ensemble.config.yaml_files import load_yaml
from ensemble.data.labelled import load_images
from ensemble.evaluation.judge import Judge
from ensemble.evaluation.mean_interval import mean_interval
from ensemble.machine.files import write_json
from models import create_model

ROOT = Path(__file__).resolve().parents[1]


def cases(recipe: dict, steps: int) -> dict[str, list[str]]:
    """Name -> arguments of invert.py."""
    members = [entry["model"] for entry in recipe["teachers"]]
    count = len(members)
    table = {"ensemble, summed": ["--iterations", str(steps)]}
    for name in members:
        table[f"{name} alone, as many steps"] = ["--models", name, "--iterations", str(steps)]
    for name in members:
        table[f"{name} alone, as many passes"] = ["--models", name, "--iterations", str(count * steps)]
    turn = ["--set", "ensemble.acting=turn"]
    table["ensemble, in turn, as many steps"] = [*turn, "--iterations", str(steps)]
    table["ensemble, in turn, as many passes"] = [*turn, "--iterations", str(count * steps)]
    pixels = "image={parameterization: {kind: pixels}, start: {kind: noise, scale: 0.3}}"
    table["ensemble, summed, pixels"] = ["--set", pixels, "--iterations", str(steps)]
    bn = next(i for i, o in enumerate(recipe["objectives"]) if o["kind"] == "bn_matching")
    paper = ["--set", f"objectives[{bn}].convention=paper", "--set", f"objectives[{bn}].weight=0.1"]
    table["ensemble, summed, paper convention"] = [*paper, "--iterations", str(steps)]
    return table


def run_case(recipe_file: Path, folder: Path, seed: int, arguments: list[str]) -> None:
    """Run invert.py into `folder` unless it is finished there."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, str(ROOT / "invert.py"), "--recipe", str(recipe_file), "--output", str(folder)]
    command += ["--seed", str(seed), "--resume", *arguments]
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(code)  # invert.py has said why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", required=True, nargs="+", metavar="MODEL")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("--output", type=Path, default=Path("results/ensemble_gain"))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    judges = {name: make_judge(name, options.data) for name in options.judge}
    table = cases(load_yaml(options.recipe), options.steps)
    for seed in range(options.seeds):  # whole rounds first: an interrupted study has every case
        for name, arguments in table.items():
            folder = options.output / f"seed{seed}" / name.replace(", ", "_").replace(" ", "-")
            run_case(options.recipe, folder, seed, arguments)
            if not (folder / "judged.json").exists():
                tensors = load_file(folder / "images.safetensors")
                judged = {name: judge(tensors["images"], tensors["targets"]) for name, judge in judges.items()}
                write_json(folder / "judged.json", judged)
            print(f"seed {seed}: {name}", flush=True)
    print_table(options, table, judges)


def make_judge(name: str, data: str) -> Judge:
    """The network, and its features of the real test images."""
    net, card = create_model(name)
    return Judge(net, card, load_images(data, "test", card.input_size))


def print_table(options: argparse.Namespace, table: dict[str, list[str]], judges: dict[str, Judge]) -> None:
    """Markdown, also written to table.md."""
    heads = [f"{name.partition('@')[0]} {what}" for name in judges for what in ("reads", "Fréchet", "coverage")]
    lines = ["| case | " + " | ".join(heads) + " | seconds |", "|---" * (len(heads) + 2) + "|"]
    n = 0
    for name in table:
        folders = [
            options.output / f"seed{s}" / name.replace(", ", "_").replace(" ", "-") for s in range(options.seeds)
        ]
        judged = [json.loads((folder / "judged.json").read_text()) for folder in folders]
        seconds = [json.loads((folder / "summary.json").read_text())["wall_seconds"] for folder in folders]
        figures = []
        for judge in judges:
            n = judged[0][judge]["n"]
            figures += [
                mean_interval([j[judge]["accuracy"]["top1"] for j in judged]),
                mean_interval([j[judge]["frechet"] for j in judged]),
                mean_interval([j[judge]["coverage"] for j in judged]),
            ]
        lines.append(f"| {name} | {' | '.join(figures)} | {mean(seconds):.0f} |")
    figures = []
    for judge in judges.values():
        train = load_images(options.data, "train", judge.card.input_size)
        real = [judge.scale(train, n, seed) for seed in range(options.seeds)]
        figures.append(mean_interval([r.accuracy.top1 for r in real]))
        figures += [mean_interval([getattr(r, key) for r in real]) for key in ("frechet", "coverage")]
    lines.append(f"| {n} real training images | {' | '.join(figures)} | |")
    (options.output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
