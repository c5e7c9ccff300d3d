"""python -m ensemble.evaluation: judge a results folder against real images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from ensemble.config.yaml_files import load_yaml
from ensemble.data.labelled import load_images
from ensemble.evaluation.judge import Judge, Judgement
from ensemble.machine import hardware
from ensemble.machine.files import write_json
from models import ModelCard, create_model, load_plugin, model_card


def main() -> int:
    """Exit code 0, or 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m ensemble.evaluation", description=__doc__)
    parser.add_argument("results", nargs="+", help="results folders of invert.py")
    parser.add_argument("--judge", required=True, metavar="MODEL", help="a network that was no teacher")
    parser.add_argument("--data", required=True, help="folder or archive with <split>/<class>/<file>")
    parser.add_argument("--train-split", default="train", help="real images that set the scale (default: train)")
    parser.add_argument("--test-split", default="test", help="real images to compare with (default: test)")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file with own models")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    try:
        for plugin in options.plugin:
            load_plugin(plugin)
        rows = judge_folders(options)
    except ValueError as error:
        print(f"ensemble.evaluation: {error}", file=sys.stderr)
        return 2
    print_rows(rows)
    if options.json:
        write_json(options.json, rows)
    return 0


def judge_folders(options: argparse.Namespace) -> dict[str, Judgement]:
    """Each folder's judgement, and that of as many real training images as the scale beside the largest."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware.set_up("fp32", device)
    net, card = create_model(options.judge)
    made = {folder: _images_and_targets(Path(folder), card) for folder in options.results}
    judge = Judge(net.to(device), card, load_images(options.data, options.test_split, card.input_size))
    rows = {folder: judge(images, targets) for folder, (images, targets) in made.items()}
    n = max(row.n for row in rows.values())
    train = load_images(options.data, options.train_split, card.input_size)
    real = judge.scale(train, n, classes=torch.cat([targets for _, targets in made.values()]).unique())
    rows[f"{real.n} real training images"] = real
    return rows


def _images_and_targets(folder: Path, judge: ModelCard) -> tuple[torch.Tensor, torch.Tensor]:
    file = folder / "images.safetensors"
    if not file.exists():
        raise ValueError(f"{file} does not exist; give the results folder of a finished run of invert.py")
    _check_classes(folder, judge)
    tensors = load_file(file)
    return tensors["images"], tensors["targets"]


def _check_classes(folder: Path, judge: ModelCard) -> None:
    """ValueError where the run's targets count other classes than the judge's, as far as its recipe tells."""
    try:
        first = model_card(load_yaml(folder / "recipe.yaml")["teachers"][0]["model"])
    except (ValueError, KeyError, IndexError, TypeError):  # no recipe, or a network that is not known here
        return
    if not first.shares_classes(judge):
        raise ValueError(f"{folder} has targets of {first.name}, and {judge.name} has other classes")


def print_rows(rows: dict[str, Judgement]) -> None:
    """The judgements as a table."""
    columns = (
        "accuracy",
        "Frechet",
        "kernel x 1000",
        "precision",
        "recall",
        "density",
        "coverage",
        "diversity",
    )
    table = Table("images", "n", *columns, box=None, pad_edge=False)
    for name, row in rows.items():
        values = (row.precision, row.recall, row.density, row.coverage, row.diversity)
        table.add_row(
            name,
            str(row.n),
            f"{row.accuracy.top1:.1%}",
            f"{row.frechet:.3f}",
            f"{row.kernel * 1000:.2f}",
            *(f"{value:.3f}" for value in values),
        )
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


if __name__ == "__main__":
    sys.exit(main())
