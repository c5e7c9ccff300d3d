"""What does the ensemble gain over its members, and by which choice? One table.

    python demos/ensemble_gain.py --data cifar10.tar.xz --judge NAME@FILE --output results/ensemble_gain

Judges are networks that were no teachers; each adds three columns.

Every case is one recipe (`clear`) with one thing changed, once per seed; a case that is finished is not run again.
A teacher pass is one teacher seeing the whole batch once. Intervals are 95 % over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ensemble import BNMatching, Recipe, Results, create_model, invert, load_recipe
from ensemble.data.labelled import load_images
from ensemble.evaluation.estimate import mean_interval
from ensemble.evaluation.judge import Judge
from ensemble.machine.files import read_json, write_json, write_text

Judged = dict[str, dict[str, Any]]
"""By judge: the fields of its Judgement."""


def cases(source: str, steps: int) -> dict[str, Recipe]:
    """Name -> recipe."""
    recipe = load_recipe(source)
    members = recipe.teachers
    passes = len(members) * steps
    alone = {member.model: replace(recipe, teachers=(member,)) for member in members}
    turn = load_recipe(source, "ensemble.acting=turn")
    pixels = load_recipe(source, "image={parameterization: {kind: pixels}, start: {kind: noise, scale: 0.3}}")
    paper = [replace(o, convention="paper", weight=0.1) if isinstance(o, BNMatching) else o for o in recipe.objectives]
    table = {"ensemble, summed": recipe.with_iterations(steps)}
    table |= {f"{name} alone, as many steps": one.with_iterations(steps) for name, one in alone.items()}
    table |= {f"{name} alone, as many passes": one.with_iterations(passes) for name, one in alone.items()}
    table["ensemble, in turn, as many steps"] = turn.with_iterations(steps)
    table["ensemble, in turn, as many passes"] = turn.with_iterations(passes)
    table["ensemble, summed, pixels"] = pixels.with_iterations(steps)
    table["ensemble, summed, paper convention"] = replace(recipe, objectives=tuple(paper)).with_iterations(steps)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", required=True, nargs="+", action="extend", metavar="MODEL")
    parser.add_argument("--recipe", default="clear")
    parser.add_argument("--output", type=Path, default=Path("results/ensemble_gain"))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    judges = {name: make_judge(name, options.data) for name in options.judge}
    table = cases(options.recipe, options.steps)
    seconds: dict[str, list[float]] = {name: [] for name in table}
    judged: dict[str, list[Judged]] = {name: [] for name in table}
    for seed in range(options.seeds):  # whole rounds first: an interrupted study has every case
        for name, recipe in table.items():
            folder = options.output / f"seed{seed}" / name.replace(", ", "_").replace(" ", "-")
            results = make(recipe, seed, folder)
            seconds[name].append(results.summary["wall_seconds"])
            judged[name].append(judge_case(results, folder, judges))
            print(f"seed {seed}: {name}", flush=True)
    print_table(options, seconds, judged, judges)


def make_judge(name: str, data: str) -> Judge:
    """The network, and its features of the real test images."""
    net, card = create_model(name)
    return Judge(net, card, load_images(data, "test", card.input_size))


def make(recipe: Recipe, seed: int, folder: Path) -> Results:
    """The case's images, made unless they are there."""
    results = invert(recipe, seed=seed, output=folder, resume=True, progress=False)
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
    options: argparse.Namespace,
    seconds: dict[str, list[float]],
    judged: dict[str, list[Judged]],
    judges: dict[str, Judge],
) -> None:
    """Markdown, also written to table.md."""
    heads = [f"{name.partition('@')[0]} {what}" for name in judges for what in ("reads", "Fréchet", "coverage")]
    lines = ["| case | " + " | ".join(heads) + " | seconds |", "|---" * (len(heads) + 2) + "|"]
    for name, of_seeds in judged.items():
        figures = [figure for judge in judges for figure in columns([each[judge] for each in of_seeds])]
        lines.append(f"| {name} | {' | '.join(figures)} | {mean(seconds[name]):.0f} |")
    n = 0
    figures = []
    for name, judge in judges.items():
        n = next(iter(judged.values()))[0][name]["n"]
        train = load_images(options.data, "train", judge.card.input_size)
        figures += columns([asdict(judge.scale(train, n, seed)) for seed in range(options.seeds)])
    lines.append(f"| {n} real training images | {' | '.join(figures)} | |")
    write_text(options.output / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def columns(judged: list[dict[str, Any]]) -> list[str]:
    """Reads, Fréchet distance and coverage by one judge, over seeds."""
    reads = mean_interval([each["accuracy"]["top1"] for each in judged])
    return [reads, *(mean_interval([each[key] for each in judged]) for key in ("frechet", "coverage"))]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
