"""Depthwise convolutions and their gradient at the image: torch's own and the kernel's, interleaved, medians.

    python -m tests.benchmarks.depthwise [--images 8] [--rounds 9] [--json FILE]

Layers are those of mobile networks at 160 pixels, and some that are left to torch. In bf16 where the processor computes
in it. Prints milliseconds and, of the kernel, GB/s of what must be read and written at least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from ensemble.machine import hardware
from ensemble.teachers.kernels import depthwise_conv

LAYERS = (
    *((32, 80, 3, 1), (96, 80, 3, 2), (144, 40, 3, 1), (144, 40, 5, 2), (240, 20, 5, 1), (240, 20, 3, 2)),
    *((480, 10, 3, 1), (672, 10, 5, 1), (672, 10, 5, 2), (1152, 5, 5, 1), (16, 80, 3, 1), (96, 56, 7, 1)),
)
"""Channels, side, filter, stride."""
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


def measured(layer: tuple[int, int, int, int], dtype: torch.dtype, images: int, rounds: int) -> dict[str, float]:
    channels, side, k, stride = layer
    x, weight = torch.randn(images, channels, side, side), torch.randn(channels, 1, k, k)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, padding = weight.to(dtype), k // 2
    forms = {
        "torch": lambda: F.conv2d(x, weight, None, stride, padding, groups=channels),
        "ours": lambda: depthwise_conv(x, weight, None, stride, [padding] * 4),
    }
    outputs = {name: form() for name, form in forms.items()}
    dy = torch.randn_like(outputs["torch"])

    def gradient(y: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    with torch.no_grad():
        forward = seconds(dict(forms), rounds)
    backward = seconds({name: gradient(y) for name, y in outputs.items()}, rounds)
    found = {f"forward, {name}": value for name, value in forward.items()}
    found |= {f"gradient, {name}": value for name, value in backward.items()}
    return found | {"bytes": float((x.numel() + dy.numel()) * dtype.itemsize)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hardware.set_up("fp32", CPU)
    rows = []
    for precision in ["fp32", *(["bf16"] if hardware.computes_in_bf16(CPU) else [])]:
        keys = ("forward, torch", "forward, ours", "gradient, torch", "gradient, ours")
        table = Table("channels", "side", "filter", "stride", *keys, "GB/s", title=f"{precision}, ms", box=None)
        for layer in LAYERS:
            found = measured(layer, hardware.PRECISIONS[precision], options.images, options.rounds)
            rows.append({"precision": precision, "layer": layer, **found})
            speeds = [found["bytes"] / found[key] / 1e9 for key in keys if "ours" in key]
            cells = [f"{found[key] * 1000:.2f}" for key in keys]
            table.add_row(*map(str, layer), *cells, ", ".join(f"{speed:.0f}" for speed in speeds))
        Console(width=110).print(table)
    if options.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "images": options.images}
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
