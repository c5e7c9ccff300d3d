"""Inversion of networks without BatchNorm, by the measured statistics of their norms: a small ViT and a ConvNeXt.

    python -m tests.benchmarks.without_bn --data imagenette64.tar.xz --output DIR [--epochs 20] [--network vit]

Each is trained from scratch (AdamW, cosine; flips, random square parts) and judged on the split `val`. Then 100 images
are made twice from the same seed: with the class term alone, and with the statistics of 1,000 training images of its
LayerNorms' inputs. Weights, measurements and finished runs that are there are used again. Writes figures.json and
without_bn.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ensemble import Results, invert
from ensemble.data.labelled import LabelledImages, load_images
from ensemble.evaluation.classification import accuracy_of, logits_of
from ensemble.image.pictures import draw_grid
from ensemble.image.transforms import Compose, Flip, Zoom
from ensemble.machine.rng import generator
from ensemble.teachers.calibration import measure
from ensemble.teachers.measured import write_measurement
from models import ModelCard, network_input

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZE, BATCH = 64, 64
CLASSES = (
    "tench", "springer", "cassette player", "chain saw", "church",
    "French horn", "garbage truck", "gas pump", "golf ball", "parachute",
)  # fmt: skip
"""Imagenette's, in the order of its folders."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=128, depth=6, num_heads=4, num_classes=10
    ),
    "convnext": lambda: timm.create_model(
        "convnext_atto", depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), patch_size=2, num_classes=10
    ),
}
VIEWS = Compose((Flip(0.5, True), Zoom(0.6)))


def card_of(name: str) -> ModelCard:
    return ModelCard(name, name, SIZE, 10, (0.5,) * 3, (0.5,) * 3, CLASSES)


def train(net: nn.Module, card: ModelCard, data: LabelledImages, epochs: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    rng = generator(0, "without bn")
    steps = epochs * (len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    net.train()
    for epoch in range(epochs):
        losses = []
        for index in torch.randperm(len(data), generator=rng).split(BATCH)[: len(data) // BATCH]:
            view = VIEWS(data.images[index].float() / 255, rng)
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                logits = net(network_input(view, card))
            loss = F.cross_entropy(logits.float(), data.labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}", flush=True)


def accuracy(net: nn.Module, card: ModelCard, data: LabelledImages) -> float:
    return accuracy_of(logits_of(net, card, data.images.float() / 255), data.labels, card).top1


def recipe(measured: bool) -> dict[str, Any]:
    statistics = [{"kind": "bn_matching", "weight": 10.0}] if measured else []
    return {
        "images_per_class": 10,
        "objectives": [
            {"kind": "cross_entropy", "weight": 1.0, "temperature": 1.0},
            *statistics,
            {"kind": "tv", "weight": 1e-3},
        ],
        "stages": [{"iterations": 300, "jitter": 6, "flip": 0.5}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    training = load_images(options.data, "train", SIZE)
    held_out = load_images(options.data, "val", SIZE)
    rows, shown = [], {}
    for name in options.network or NETWORKS:
        torch.manual_seed(0)
        net, card, weights = NETWORKS[name](), card_of(name), options.output / f"{name}.safetensors"
        if not weights.is_file():
            train(net, card, training, options.epochs)
            save_file(net.state_dict(), weights)
        net.load_state_dict(load_file(weights))
        net.eval()
        row: dict[str, Any] = {"network": name, "accuracy": accuracy(net, card, held_out)}
        row["parameters"] = sum(parameter.numel() for parameter in net.parameters())
        index = torch.randperm(len(training), generator=generator(0, "measured"))[:1000]
        file = options.output / f"{name}_statistics.safetensors"
        write_measurement(file, measure(net, card, (training.images[index].float() / 255).split(100)))
        for measured in (False, True):
            teacher: dict[str, Any] = {"model": (net, card)}
            if measured:
                teacher["statistics"] = str(file)
            folder = options.output / f"{name}_{'measured' if measured else 'class'}"
            results = invert([teacher], output=folder, resume=True, progress=False, **recipe(measured))
            assert isinstance(results, Results) and not results.summary.get("stopped")
            shown[name, measured] = results
            row["read, measured" if measured else "read, class term alone"] = results.summary["teachers"][name][
                "accuracy"
            ]
        rows.append(row)
        print(json.dumps(row), flush=True)
    (options.output / "figures.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(shown, rows, options.output / "without_bn.png")


def draw(shown: dict[tuple[str, bool], Results], rows: list[dict[str, Any]], file: Path) -> None:
    figure, axes = plt.subplots(len(rows), 2, figsize=(13, 6.4 * len(rows)), squeeze=False, layout="constrained")
    for line, row in zip(axes, rows, strict=True):
        for axis, measured in zip(line, (False, True), strict=True):
            results = shown[row["network"], measured]
            axis.imshow(draw_grid(results.images, results.targets, CLASSES))
            axis.set_title(f"{row['network']}: {'class term and measured statistics' if measured else 'class term'}")
            axis.set_axis_off()
    figure.savefig(file, dpi=90)


if __name__ == "__main__":
    main()
