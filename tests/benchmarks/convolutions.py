"""Convolutions and their gradient at the image: torch's own and the kernels', interleaved, medians.

    python -m tests.benchmarks.convolutions [--only winograd networks] [--images 8] [--rounds 9] [--json FILE]

Depthwise layers are those of mobile networks at 160 pixels, and some that are left to torch, also in bf16 where the
processor computes in it; 3 x 3 layers in Winograd's form those of CIFAR networks, with eight times the images, and of
ImageNet's. Networks are teachers with and without that form: logits, moments and their gradient at the image, and the
memory that the filters take. Prints milliseconds and, of the depthwise kernel, GB/s of what must be read and written at
least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from ensemble.machine import hardware
from ensemble.teachers.convolutions import Winograd
from ensemble.teachers.kernels import depthwise_conv, gradient_filters, winograd, winograd_conv, winograd_filters
from ensemble.teachers.teacher import Teacher
from models import create_model

Forms = dict[str, Callable[[], torch.Tensor]]
DEPTHWISE = (
    *((32, 80, 3, 1), (96, 80, 3, 2), (144, 40, 3, 1), (144, 40, 5, 2), (240, 20, 5, 1), (240, 20, 3, 2)),
    *((480, 10, 3, 1), (672, 10, 5, 1), (672, 10, 5, 2), (1152, 5, 5, 1), (16, 80, 3, 1), (96, 56, 7, 1)),
)
"""Channels, side, filter, stride."""
WINOGRAD = (
    *((16, 32, 8), (32, 16, 8), (64, 8, 8), (32, 32, 8), (64, 16, 8), (128, 8, 8), (128, 4, 8)),
    *((64, 56, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1), (256, 56, 1), (512, 28, 1)),
)
"""Channels, side, how many times the images."""
NETWORKS = (
    *(("resnet20_cifar", 100), ("vgg16_bn_slim_cifar", 100), ("wrn16_2_cifar", 100)),
    *(("resnet18@random", 8), ("resnet50@random", 4), ("vgg16_bn@random", 2)),
)
"""Teachers, and how many images."""
TABLES = ("depthwise", "winograd", "networks")
CPU = torch.device("cpu")


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median of each call; the rounds visit them in turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


def of_depthwise(layer: tuple[int, int, int, int], dtype: torch.dtype, images: int) -> tuple[torch.Tensor, Forms]:
    channels, side, k, stride = layer
    x, weight = _image(images, channels, side).to(dtype), torch.randn(channels, 1, k, k).to(dtype)
    x.requires_grad_()
    return x, {
        "torch": lambda: F.conv2d(x, weight, None, stride, k // 2, groups=channels),
        "ours": lambda: depthwise_conv(x, weight, None, stride, [k // 2] * 4),
    }


def of_winograd(layer: tuple[int, int, int], images: int) -> tuple[torch.Tensor, Forms]:
    channels, side, times = layer
    x, weight = _image(images * times, channels, side).requires_grad_(), torch.randn(channels, channels, 3, 3)
    weight = weight.contiguous(memory_format=torch.channels_last)
    filters, back = winograd_filters(weight), gradient_filters(weight)
    return x, {
        "torch": lambda: F.conv2d(x, weight, None, 1, 1),
        "ours": lambda: winograd_conv(x, weight, None, 1, filters, back),
    }


def _image(images: int, channels: int, side: int) -> torch.Tensor:
    return torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)


def measured(x: torch.Tensor, forms: Forms, rounds: int) -> dict[str, float]:
    """Seconds forward and back, and the bytes that both read and write at least."""
    outputs = {name: form() for name, form in forms.items()}
    dy = torch.randn_like(outputs["torch"])

    def gradient(y: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    with torch.no_grad():
        forward = seconds(dict(forms), rounds)
    backward = seconds({name: gradient(y) for name, y in outputs.items()}, rounds)
    found = {f"forward, {name}": value for name, value in forward.items()}
    found |= {f"gradient, {name}": value for name, value in backward.items()}
    return found | {"bytes": float((x.numel() + dy.numel()) * x.dtype.itemsize)}


def of_network(name: str, images: int, rounds: int) -> dict[str, float]:
    """Seconds a step, and the MiB of the filters."""
    teachers = {form: Teacher(name, *create_model(name)) for form in ("torch", "ours")}
    for form, teacher in teachers.items():
        with patch.object(winograd, "widest_is_avx2", return_value=form == "ours"):
            teacher.rewrite()
    size = teachers["ours"].card.input_size
    view = torch.rand(images, 3, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()

    def step(teacher: Teacher) -> Callable[[], object]:
        def once() -> object:
            seen = teacher.observe(view)
            return torch.autograd.grad(seen.logits.sum() + seen.moments.sum(), view)

        return once

    filters = [module for module in teachers["ours"].net.modules() if isinstance(module, Winograd)]
    held = sum(module.filters.nbytes + module.back.nbytes for module in filters)
    return seconds({form: step(teacher) for form, teacher in teachers.items()}, rounds) | {"MiB": held / 2**20}


KEYS = ("forward, torch", "forward, ours", "gradient, torch", "gradient, ours")


def _cells(found: dict[str, float]) -> list[str]:
    return [f"{found[key] * 1000:.2f}" for key in KEYS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hardware.set_up("fp32", CPU)
    rows: list[dict[str, Any]] = []
    precisions = ["fp32", *(["bf16"] if hardware.computes_in_bf16(CPU) else [])]
    for precision in precisions if "depthwise" in options.only else ():
        table = Table("channels", "side", "filter", "stride", *KEYS, "GB/s", title=f"{precision}, ms", box=None)
        for layer in DEPTHWISE:
            found = measured(*of_depthwise(layer, hardware.PRECISIONS[precision], options.images), options.rounds)
            rows.append({"precision": precision, "layer": layer, **found})
            speeds = [found["bytes"] / found[key] / 1e9 for key in KEYS if "ours" in key]
            table.add_row(*map(str, layer), *_cells(found), ", ".join(f"{speed:.0f}" for speed in speeds))
        Console(width=110).print(table)
    if "winograd" in options.only:
        table = Table("images", "channels", "side", *KEYS, "times as fast", title="3 x 3, fp32, ms", box=None)
        for layer3 in WINOGRAD:
            found = measured(*of_winograd(layer3, options.images), options.rounds)
            rows.append({"precision": "fp32", "layer": layer3, **found})
            times = [found[f"{way}, torch"] / found[f"{way}, ours"] for way in ("forward", "gradient")]
            channels, side, many = layer3
            sizes = map(str, (options.images * many, channels, side))
            table.add_row(*sizes, *_cells(found), ", ".join(f"{each:.2f}" for each in times))
        Console(width=110).print(table)
    if "networks" in options.only:
        table = Table(
            "network", "images", "torch", "ours", "times as fast", "filters, MiB", title="a step, ms", box=None
        )
        for name, images in NETWORKS:
            found = of_network(name, images, options.rounds)
            rows.append({"precision": "fp32", "network": name, "images": images, **found})
            taken = [f"{found[form] * 1000:.0f}" for form in ("torch", "ours")]
            table.add_row(name, str(images), *taken, f"{found['torch'] / found['ours']:.2f}", f"{found['MiB']:.0f}")
        Console(width=110).print(table)
    if options.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "images": options.images}
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
