"""Make the images that units prefer: of any layer of a network, or of matched units of several.

Results are those of any run, with units.jsonl (how much each image excites its unit, after JPEG, blur and rescaling
too, and beside real images), units.png and top_real.png (real images that excite each unit most).

examples:
  python invert.py units --models resnet20_cifar --units 'layer3.0:*' --output results/sheet
  python invert.py units --models efficientnet_lite0 --units 'logits:goldfish,daisy' --method maco --output results/two
  python invert.py units --models resnet20_cifar --units layer2.0:3 --real cifar10.tar.xz --output results/unit
  python invert.py units --models A B --units 'A/layer3.0:5' --real DATA --match --output results/both
  python invert.py --list-layers resnet20_cifar

A selection is [TEACHER/]LAYER[#CALL][.in|.out]:CHANNELS[@POSITION], summands joined by " + " and " - ":
CHANNELS are 7, 0-63, 7,9 or * (an image each), {7,9} (summed), classes' names, dir=FILE or mask=FILE;
POSITION is centre, Y,X, cls, patches or t=T, by default all, averaged.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from ensemble.applications._endings import tell_stopped, tell_unread
from ensemble.applications._inverting import add_computing, add_dry_run, computing_of, is_dry, launch, ranks_to_launch
from ensemble.applications._options import Parser, add_output, add_overrides
from ensemble.machine.environment import is_main_process, is_restarted, launched_ranks
from ensemble.units import METHODS

ON_RANKS = True


def arguments(p: Parser) -> None:
    """The options."""
    what = p.add_argument_group("what to make")
    what.add_argument("--models", nargs="+", action="extend", metavar="MODEL", required=True, help="the networks")
    what.add_argument(
        "--units", nargs="+", action="extend", metavar="SELECTION", required=True, help="the units; an image each"
    )
    what.add_argument("--method", choices=METHODS, default="fourier", help="(default: %(default)s)")
    what.add_argument("--generator", metavar="NAME", help="move a generator's code instead of pixels (gd, lbfgs)")
    what.add_argument(
        "--bn-matching", type=float, default=0.0, metavar="W", help="also match BN statistics, so strongly"
    )
    what.add_argument("--images-per-unit", type=int, default=1, metavar="K")
    what.add_argument("--alpha", action="store_true", help="keep where the gradient went: units_alpha.png")
    what.add_argument("--size", type=int, metavar="PIXELS", help="of the images (default: the largest input size)")
    what.add_argument("--iterations", type=int, metavar="N", help="steps in all")
    what.add_argument("--seed", type=int)
    what.add_argument(
        "--verifier",
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="networks that read the images of classes' units",
    )
    add_overrides(what, "optimizer.lr=0.2")
    real = p.add_argument_group("real images, as the scale; they are not used to make any")
    real.add_argument("--real", metavar="DATA", help="real images, a folder or an archive")
    real.add_argument("--split", help="which of them (default: train, or where there are no splits, all)")
    real.add_argument("--match", action="store_true", help="add the unit of every other model that matches best")
    add_output(p, "results/units")
    add_computing(p)
    add_dry_run(p.add_argument_group("look, and make nothing"))


def run(options: argparse.Namespace) -> int:
    """Makes the images and what is read of them."""
    began = time.perf_counter()
    from ensemble.plugins import load_entry_points
    from ensemble.runs.trial import Interrupted
    from ensemble.units.job import Unread, units_job
    from ensemble.units.matching import matched
    from ensemble.units.summary import print_matches, print_units

    load_entry_points()
    if options.match and options.real is None:
        raise ValueError("--match compares units by real images; name them with --real DATA")
    device = options.devices or options.device or "auto"
    nproc = ranks_to_launch(options, device if isinstance(device, str) else tuple(device))
    units = list(options.units)
    if options.match:
        matches = matched(options.models, units, options.real, options.split)
        units = [match.selection for match in matches]
        if is_main_process() and nproc is None:
            print_matches(matches)
    job = units_job(
        options.models,
        units,
        method=options.method,
        images_per_unit=options.images_per_unit,
        size=options.size,
        generator=options.generator,
        bn_matching=options.bn_matching,
        real=options.real,
        split=options.split,
        output=options.output,
        resume=options.resume or is_restarted(),
        overwrite=options.overwrite,
        iterations=options.iterations,
        overrides=options.set,
        **_fields(options),
    )
    if is_dry(options, job.job.plan, job.job.devices, nproc or launched_ranks()):
        return 0
    if nproc is not None:
        job.check(nproc)
        return launch(nproc)
    try:
        made = job.run(began, progress=True)
    except Interrupted as stop:
        return tell_stopped(stop, options)
    except Unread as end:
        return tell_unread(end.number, options)
    if made is not None:
        print_units(made, options.output)
    return 0


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    named = {
        "seed": options.seed,
        "attribution": options.alpha or None,
        "verifiers": options.verifier,
        **computing_of(options),
    }
    return {key: value for key, value in named.items() if value is not None}
