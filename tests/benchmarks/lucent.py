"""Seconds for an image and step, of one unit each, beside lucent's.

    pip install torch-lucent            (0.1.8; it needs kornia 0.4.1)
    python -m tests.benchmarks.lucent --output results/lucent.json [--model resnet18@random] [--layer layer2.1]
        [--units 8] [--steps 20] [--rounds 3]

Both move decorrelated Fourier coefficients by Adam under small shifts, at the network's input size, with as many
threads. lucent makes one image after the other (an objective a run), ours all in one batch, and once one by one.
Interleaved rounds, medians; start-up is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from lucent.optvis import objectives, param, render, transform

from ensemble import prefer
from models import create_model, network_input


def of_lucent(model: str, layer: str, units: int, steps: int) -> float:
    net, card = create_model(model)
    net.eval()
    began = time.perf_counter()
    for k in range(units):
        render.render_vis(
            net,
            objectives.channel(layer.replace(".", "_"), k),
            param_f=lambda: param.image(card.input_size, fft=True, decorrelate=True),
            transforms=[transform.jitter(8), lambda x: network_input(x, card)],
            preprocess=False,
            fixed_image_size=card.input_size,
            thresholds=(steps,),
            show_image=False,
            progress=False,
        )
    return (time.perf_counter() - began) / units / steps


def of_ours(model: str, layer: str, units: int, steps: int, together: bool) -> float:
    seconds = []
    for text in [f"{layer}:0-{units - 1}"] if together else [f"{layer}:{k}" for k in range(units)]:
        made = prefer(model, text, iterations=steps + 2, progress=False, precision="fp32")
        assert made is not None
        seconds.append(1 / made.results.summary["steps_per_second"])
    return sum(seconds) / units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="resnet18@random")
    parser.add_argument("--layer", default="layer2.1")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    what = options.model, options.layer, options.units, options.steps
    rounds = [
        {"lucent": of_lucent(*what), "batch": of_ours(*what, True), "one by one": of_ours(*what, False)}
        for _ in range(options.rounds)
    ]
    found = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
    found["threads"] = torch.get_num_threads()
    options.output.write_text(json.dumps({"what": what, "median": found, "rounds": rounds}, indent=1))
    print(found, {key: found["lucent"] / found[key] for key in ("batch", "one by one")})


if __name__ == "__main__":
    main()
