"""A generator on one and two real processes: the same bits, also after a resume from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from problem import IMAGES, finished, inversion, placed, scattered

from ensemble.engine.inversion import Inversion
from ensemble.engine.reduction import FixedPointSum
from ensemble.image.generator import GeneratorImage
from ensemble.machine.checkpoint import checksum, load_checkpoint, save_checkpoint
from ensemble.machine.ranks import ProcessContext, process_context

STEPS = 12


def run(
    context: ProcessContext,
    fixed: bool,
    dtype: torch.dtype = torch.float32,
    learn: Any = "both",
    steps: int = STEPS,
) -> Inversion:
    image = GeneratorImage(IMAGES, 8, width=4, latent=6, learn=learn, dtype=dtype)
    cells = scattered(context, 2) if fixed else placed(context, 2, None)
    reduction = FixedPointSum() if fixed else None
    return inversion(context, 2, cells, dtype, steps, image=image, reduction=reduction, best_every=4)


def work(context: ProcessContext) -> dict[str, Any]:
    """Images under fixed-point sums, and under plain ones in float64; and all that a checkpoint would hold."""
    fixed = finished(run(context, True))
    plain = finished(run(context, False, torch.float64))
    return {
        "fixed": fixed.image().detach(),
        "fixed best": fixed.result(),
        "plain": plain.image().detach(),
        "states": [checksum(inverted.state()[0]) for inverted in (fixed, plain)],
    }


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    done = {world: launch(work, world, tmp_path_factory.mktemp("ranks"), seconds=300) for world in (1, 2)}
    return done.__getitem__


def test_images_are_the_same_bits_on_one_and_two_ranks(worlds: Callable[[int], list[dict[str, Any]]]) -> None:
    (one,) = worlds(1)
    for rank in worlds(2):
        assert torch.equal(rank["fixed"], one["fixed"])
        assert torch.equal(rank["fixed best"], one["fixed best"])
        torch.testing.assert_close(rank["plain"], one["plain"], rtol=0, atol=1e-9)
    first, second = worlds(2)
    assert torch.equal(first["plain"], second["plain"])
    assert first["states"] == second["states"] and first["states"][0] == one["states"][0]


@pytest.mark.parametrize("learn", ["both", "latents", "weights"])
def test_a_run_resumed_from_a_file_is_the_uninterrupted_one(tmp_path: Path, learn: str) -> None:
    with process_context(torch.device("cpu")) as context:
        whole = finished(run(context, False, learn=learn))
        first = run(context, False, learn=learn)
        for step in first:
            if step.number == 6:
                break
        save_checkpoint(tmp_path, "trial", first.step, *first.state())
        saved, _ = load_checkpoint(tmp_path, "trial")
        assert saved is not None
        second = run(context, False, learn=learn)
        second.image.randomize(1.0, torch.Generator().manual_seed(9))  # all comes from the file
        second.load_state(saved.tensors, saved.meta)
        finished(second)
    assert torch.equal(second.image(), whole.image())
    assert torch.equal(second.result(), whole.result())
    assert first.step == 7 and second.step == whole.step == STEPS


def test_the_loss_falls() -> None:
    with process_context(torch.device("cpu")) as context:
        losses = [float(step.record.total) for step in run(context, False, steps=50)]
    assert losses[-1] < 0.9 * losses[0]
