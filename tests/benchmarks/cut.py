"""What a graph cut at the tap would gain over a forward pass that stops there: a pass to the tap and its gradient.

    python -m tests.benchmarks.cut --output results/cut.json [--rounds 15] [--batch 4]

For each network and layer, interleaved, medians: the whole network with a hook; our tap, which stops the forward once
it has its value; and torchvision's fx extractor, whose graph holds what the tap rests on and nothing else. Random
weights, the networks' own sizes, fp32. Values and gradients of all three are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from ensemble.machine.files import write_json
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Teacher
from models import create_model, network_input

CASES = (
    ("resnet18", "layer2.1"),
    ("resnet18", "layer4.1"),
    ("googlenet", "inception4a.branch1"),
    ("inception_v3", "Mixed_6b.branch_pool"),
    ("densenet121", "features.denseblock2"),
)
"""The branches are what a cut can leave out more of: their siblings run before or after them."""


def seconds(call: Callable[[torch.Tensor], torch.Tensor], view: torch.Tensor) -> float:
    began = time.perf_counter()
    call(view).sum().backward()  # type: ignore[no-untyped-call]  # torch's
    return time.perf_counter() - began


def ways(model: str, layer: str) -> tuple[dict[str, Callable[[torch.Tensor], torch.Tensor]], int]:
    """By name, each from the images in [0, 1] to the layer's value; and the network's input size."""

    def built() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        net, card = create_model(f"{model}@random")
        return net.eval().requires_grad_(False), card

    (hooked, card), (cut, _), (tapped, _) = built(), built(), built()
    caught: list[torch.Tensor] = []
    hooked.get_submodule(layer).register_forward_hook(lambda _, __, output: caught.append(output))
    extractor = create_feature_extractor(cut, {layer: "value"})
    teacher = Teacher(model, tapped, card)
    tap = Tap(layer)
    teacher.tap([tap], alone=True)

    def whole(view: torch.Tensor) -> torch.Tensor:
        caught.clear()
        hooked(network_input(view, card))
        return caught[0]

    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "whole": whole,
        "stopped": lambda view: teacher.observe(view).taps[tap],
        "cut": lambda view: extractor(network_input(view, card))["value"],
    }
    return calls, card.input_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    table = Table("network", "layer", "whole, ms", "stopped", "cut", "cut : stopped", box=None)
    rows = []
    for model, layer in CASES:
        calls, size = ways(model, layer)
        view = torch.rand(options.batch, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
        found = {}
        for name, call in calls.items():
            value = call(view)
            (gradient,) = torch.autograd.grad(value.square().sum(), view)
            found[name] = (value.detach(), gradient)
        for name in ("stopped", "cut"):
            for mine, other in zip(found[name], found["whole"], strict=True):
                gap = float((mine - other).norm() / other.norm())
                assert gap < 1e-3, (model, layer, name, gap)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                times[name].append(seconds(call, view))
        taken = {name: 1000 * statistics.median(each) for name, each in times.items()}
        rows.append({"network": model, "layer": layer, "milliseconds": taken})
        table.add_row(model, layer, *(f"{v:.1f}" for v in taken.values()), f"{taken['cut'] / taken['stopped']:.2f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, rows)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
