"""Images that an optimiser moves, and that any number of threads computes alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ensemble.engine.optimizers import Adam
from ensemble.image.parameterization import ImageParameterization


def losses_of_descent(images: ImageParameterization, target: torch.Tensor, lr: float, steps: int) -> list[float]:
    """Mean squared distances from `target`, before each step of Adam towards it."""
    optimizer = Adam(lr=lr).make(list(images.parameters()), steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (images() - target).square().mean()
        loss.backward()
        optimizer.step()
        images.project()
        losses.append(loss.item())
    return losses


def check_threads(make: Callable[[], ImageParameterization], slope: torch.Tensor) -> None:
    """One, two and three threads give images, and their gradients along `slope`, of the same bits."""
    before = torch.get_num_threads()
    found: list[list[torch.Tensor]] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            images = make()
            found.append([images(), *torch.autograd.grad(images(), list(images.parameters()), slope)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
