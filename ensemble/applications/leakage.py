"""Study what networks' statistics leak of their training, with a bank of networks that are trained for it.

From one recipe: trains networks in arms that differ in their augmentation, each with its pair of the same seed in every
arm; makes images of their statistics; runs detectors, their controls and attacks on membership; tests the contrasts
that the recipe declares, in its order; and writes leakage.html (self-contained), leakage.json and networks.csv to DIR.

Whatever is computed is kept: --resume goes on after a kill, and the ranks of a torchrun share the work. --quick takes
so little of everything that a run shows that it works, and nothing else.

examples:
  python invert.py leakage --recipe cutmix --data cifar10.tar.xz --output results/leakage
  python invert.py leakage --recipe recipes/leakage/cutmix.yaml --quick --data cifar10.tar.xz --output results/quick
  torchrun --nproc-per-node 2 invert.py leakage --recipe cutmix --data cifar10.tar.xz --output results/leakage
"""

from __future__ import annotations

import argparse
import shlex
import sys

from ensemble.applications._options import Parser, add_output, add_overrides
from ensemble.machine.files import user_path

ON_RANKS = True


def arguments(p: Parser) -> None:
    """The options."""
    p.add_argument(
        "--recipe", required=True, metavar="FILE", help="a YAML recipe, or the name of one in recipes/leakage"
    )
    p.add_argument("--data", metavar="DATA", help="a folder or archive with SPLIT/CLASS/FILE, instead of the recipe's")
    add_overrides(p, "inversions.steps=100")
    p.add_argument("--quick", action="store_true", help="two networks an arm, one epoch: does it run?")
    add_output(p)


def run(options: argparse.Namespace) -> int:
    """What can be refused is refused before anything is computed."""
    from ensemble.applications._endings import ended
    from ensemble.applications._training import with_parts
    from ensemble.config.overrides import apply_override
    from ensemble.machine.environment import launched_rank
    from ensemble.machine.progress import FallingSilent, progress_reporter
    from ensemble.plugins import load_entry_points
    from ensemble.privacy.study.folder import PAGE, LeakageFolder
    from ensemble.privacy.study.recipe import parse_leakage_recipe
    from ensemble.privacy.study.run import study
    from ensemble.runs.recipes import LEAKAGE, read_recipe

    load_entry_points()
    import torch

    data = with_parts(read_recipe(options.recipe, LEAKAGE, "leakage"), data={"path": options.data})
    for override in options.set:
        data = apply_override(data, override)
    recipe = parse_leakage_recipe(data)
    if options.quick:
        recipe = recipe.hastened()
    folder = LeakageFolder(user_path(options.output))

    def act() -> dict[str, bool]:
        wrote = study(
            recipe,
            folder,
            resume=options.resume,
            overwrite=options.overwrite,
            quick=options.quick,
            command=shlex.join(["python", "invert.py", *sys.argv[1:]]),
            versions=f"Python {sys.version.split()[0]}, torch {torch.__version__}, seed {recipe.seed}",
            progress=FallingSilent(progress_reporter(launched_rank())),
        )
        return {"wrote": wrote}

    found = ended(act, options, "cell")
    if isinstance(found, int):
        return found
    if found["wrote"]:
        print(f"{folder.path / PAGE}: the study is done")
    return 0
