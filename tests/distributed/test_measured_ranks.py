"""Layers whose statistics were measured: two real processes give the gradient of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch

from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.placement import Cell, place, slices
from ensemble.machine.ranks import ProcessContext
from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import CrossEntropy
from ensemble.objectives.terms import Formulation
from ensemble.teachers.teacher import Teacher

IMAGES = 5
NAMES = ("vit", "convnext", "mixed")


def work(context: ProcessContext) -> dict[str, Any]:
    """L and its gradient, with what is measured on each rank and in micro-batches of two."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
    from measured_networks import CARD, measured

    whole = place([1.0] * len(NAMES), IMAGES, context.world_size).cells[context.rank]
    cells: list[Cell] = [part for cell in whole for part in slices(cell, 2)]
    owned = {cell.teacher for cell in cells}
    targets = torch.tensor([0, 1, 2, 3, 0])
    members = []
    for t, name in enumerate(NAMES):
        net, found = measured(name, 20)
        teacher = Teacher(name, net.double(), CARD, dtype=torch.float64, measured=found)
        members.append(EnsembleMember(teacher.profile(), 1.0 + t, targets, teacher if t in owned else None))
    terms = Formulation((CrossEntropy(), BNMatching(weight=1.0), BNMatching(weight=1.0, convention="calibrated")))
    loss = EnsembleLoss(members, terms, cells, recompute=True, reduce=context.sum_)
    view = torch.rand(IMAGES, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    record, slope, _ = loss.gradient(view, {0: 1 / 6, 1: 2 / 6, 2: 3 / 6})
    return {"loss": record.total, "gradient": slope, "cells": len(cells)}


@pytest.mark.parametrize("world", [2, 3])
def test_gradient_is_that_of_one_process(world: int, tmp_path: Path) -> None:
    (one,) = launch(work, 1, tmp_path)
    ranks = launch(work, world, tmp_path)
    assert all(rank["cells"] for rank in ranks) and one["gradient"].norm() > 0
    for rank in ranks:
        assert (rank["gradient"] - one["gradient"]).norm() < 1e-12 * one["gradient"].norm()
        torch.testing.assert_close(rank["loss"], one["loss"], rtol=1e-12, atol=0)
