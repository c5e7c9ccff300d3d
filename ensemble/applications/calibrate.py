"""Measure on real images what layers see, for BN matching with networks that keep no such statistics.

Written are, for layers with running statistics, how far batches of real images are from them (levels). For further
layers also mean and variance of their inputs, a channel each: of those named by --layers, or where no layer keeps
running statistics, of all norms (LayerNorm, GroupNorm, RMSNorm). A recipe's teacher takes the file as `statistics`.

Images made with such a file are made with the help of these real images, if only of their means and variances.

examples:
  python invert.py calibrate timm/vit_tiny_patch16_224 --data imagenette.tar --output vit.safetensors
  python invert.py --models timm/vit_tiny_patch16_224 --set 'teachers[0].statistics=vit.safetensors'
  python invert.py calibrate resnet20_cifar --data cifar10.tar.xz --layers 'layer*.conv2' --output r20.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ensemble.applications._options import Parser, add_device, add_file, file_of

if TYPE_CHECKING:
    import torch

    from ensemble.machine.progress import ProgressReporter


def arguments(p: Parser) -> None:
    """The options."""
    p.add_argument("model", metavar="MODEL", help="a network, NAME[:option=value][@WEIGHTS]")
    p.add_argument("--data", required=True, metavar="PATH", help="real images, a folder or an archive")
    p.add_argument("--split", metavar="SPLIT", help="which of them (default: train, or where there are no splits, all)")
    p.add_argument("--images", type=int, default=1000, metavar="N", help="how many, drawn (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: %(default)s)")
    p.add_argument(
        "--layers",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="further layers, by shell patterns",
    )
    add_file(p, "the file to write, *.safetensors")
    add_device(p)


def run(options: argparse.Namespace) -> int:
    """A file, a number or a network that cannot be taken is refused before the images are read."""
    file = file_of(options, ".safetensors")
    if options.images < 2:
        raise ValueError(f"--images {options.images}: give at least two, a thousand are plenty")

    from pathlib import Path

    from ensemble.data.labelled import any_images
    from ensemble.machine.hardware import choose_device, set_up
    from ensemble.machine.progress import FallingSilent, progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.teachers.calibration import measure
    from ensemble.teachers.measured import write_measurement
    from models import create_model

    load_entry_points()
    device = choose_device(options.device or "auto")
    net, card = create_model(options.model)
    set_up("fp32", device)
    display = FallingSilent(progress_reporter())
    name = Path(options.data).name
    display.message(f"reading images of {name} at {card.input_size} x {card.input_size}")
    real = any_images(options.data, options.split, card.input_size, at_most=options.images, seed=options.seed)
    try:
        found = measure(
            net,
            card,
            _shown(real.images, display),
            layers=options.layers,
            model=options.model,
            data=f"{name} {real.split}".strip(),
            device=device,
        )
    finally:
        display.close()
    write_measurement(file, found)
    with_mean = f"{len(found.layers)} of them with mean and variance"
    print(f"{file}: levels of {len(found.levels)} layer(s), {with_mean}, from {found.images} images")
    return 0


def _shown(images: torch.Tensor, display: ProgressReporter) -> Iterator[torch.Tensor]:
    """Parts of the images, RGB in [0, 1]; the display steps as they are done with."""
    parts = images.split(10)
    display.start(len(parts))
    for i, part in enumerate(parts):
        yield part.float() / 255
        display.step(i)
