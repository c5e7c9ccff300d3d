"""Every classification network of torchvision and timm as a teacher: runs, or says in one line why not.

    python -m tests.benchmarks.networks --output results/networks [--part K/N] [--most-parameters 150e6] [NAME ...]

Weights are random. A network sees 64 pixels where it takes them, else its own input size. For each: how many layers
with running statistics it has, how many are matched, and whether the teacher's logits are the network's. What is done
is not done again (one JSON line each in DIR), what was too large is where more is allowed; without NAME it goes through
all. At the end the table.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ensemble.machine.files import JsonLines, read_json_lines
from ensemble.machine.hardware import channels_last
from ensemble.teachers.observing import has_statistics
from ensemble.teachers.teacher import Teacher
from models import create_model, list_models, model_card, network_input, network_logits

SMALL = 64


def parameters(name: str) -> int:
    """How many the network has, without making them; 0 where its factory cannot do without."""
    from models._registry import _find
    from models._spec import parse_spec

    entry = _find(parse_spec(f"{name}@random"))
    try:
        with torch.device("meta"), torch.no_grad():
            return sum(p.numel() for p in entry.factory(**entry.options).parameters())
    except (NotImplementedError, RuntimeError):
        return 0


def tried(name: str, most: float) -> dict[str, Any]:
    """One row: `result` is run, partial, refused or skipped."""
    began = time.perf_counter()
    row: dict[str, Any] = {"network": name, "result": "refused"}
    try:
        if model_card(name).num_classes < 1:
            return row | {"result": "skipped", "why": "it has no classifier"}
        if (count := parameters(name)) > most:
            return row | {"result": "skipped", "why": f"{count / 1e6:.0f} million parameters", "parameters": count}
        row |= as_teacher(name)
    except Exception as error:
        row["why"] = " ".join(str(error).split())[:200]
        row["kind"] = type(error).__name__
    return row | {"seconds": round(time.perf_counter() - began, 1)}


@torch.no_grad()
def as_teacher(name: str) -> dict[str, Any]:
    net, card = create_model(f"{name}@random")
    layers = sum(has_statistics(module) for module in net.modules())
    for size in (SMALL, card.input_size):
        small = replace(card, input_size=size)
        try:
            teacher = Teacher(name, net, small)
            break
        except ValueError:
            if size == card.input_size:
                raise
    view = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(5))
    x = network_input(view, small).contiguous(memory_format=torch.channels_last)
    expected = network_logits(channels_last(net)(x), len(x))  # as a teacher is laid out: roundings multiply
    found = teacher.observe(view).logits
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    result = "run" if error < 1e-3 or not expected.isfinite().all() else "partial"
    never = sum(why == "it never runs in eval mode" for why in teacher.left_out.values())
    if len(teacher.left_out) > never:
        result = "partial"
    return {
        "result": result,
        "pixels": size,
        "layers": layers,
        "matched": len(teacher.layers),
        "never run": never,
        "left_out": dict(list(teacher.left_out.items())[:3]),
        "error": error,
    }


def _may_be_tried_now(row: dict[str, Any], most: float) -> bool:
    return row["result"] == "skipped" and row.get("parameters", most + 1) <= most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", default="1/1", metavar="K/N")
    parser.add_argument("--most-parameters", type=float, default=150e6)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    k, n = map(int, options.part.split("/"))
    names = options.names or [card.name for card in list_models() if not card.name.endswith("_cifar")][k - 1 :: n]
    file = options.output / f"networks{k}.jsonl"
    done = {row["network"] for row in read_json_lines(file) if not _may_be_tried_now(row, options.most_parameters)}
    print(f"{len(names)} networks, {len(done & set(names))} done", flush=True)
    with JsonLines(file) as lines:
        for name in names:
            if name not in done:
                lines.write(tried(name, options.most_parameters))
    rows = [row for part in sorted(options.output.glob("networks*.jsonl")) for row in read_json_lines(part)]
    rows = list({row["network"]: row for row in rows}.values())  # the last of each
    for zoo, chosen in (
        ("torchvision", [row for row in rows if not row["network"].startswith("timm/")]),
        ("timm", [row for row in rows if row["network"].startswith("timm/")]),
    ):
        counts = Counter(row["result"] for row in chosen)
        with_bn = [row for row in chosen if row.get("matched")]
        print(
            f"{zoo}: {len(chosen)} networks, {dict(counts)}; {len(with_bn)} with running statistics, "
            f"{sum(row['matched'] for row in with_bn)} layers matched, "
            f"{sum(row['never run'] for row in with_bn)} never run in eval mode"
        )
    for row in rows:
        if row["result"] in ("refused", "partial"):
            print(json.dumps({key: row[key] for key in row if key != "seconds"}))


if __name__ == "__main__":
    main()
