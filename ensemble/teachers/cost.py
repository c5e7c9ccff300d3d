"""What one image costs a teacher: operations and memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ensemble.machine.errors import is_out_of_memory
from ensemble.teachers.teacher import Teacher
from models import reason_of


class Cost(NamedTuple):
    """`flops` of one image forward and back to the input, `memory` in bytes of activations kept for it."""

    flops: float
    memory: int


def count_cost(teacher: Teacher) -> Cost:
    """Of one image at the teacher's own input size; counted, so the same on every device.

    ValueError where the pass cannot be taken back to the image.
    """
    size = teacher.card.input_size
    view = torch.full((1, 3, size, size), 0.5, dtype=teacher.wide, device=teacher.device, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and tensor.shape[0] == 1 and not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),  # attention as products, counted alike on every device
    ):
        try:
            seen = teacher.observe(view)
            if not seen.taps and not seen.logits.requires_grad:
                raise ValueError("its logits have none")
            parts = [part for part in (seen.logits, seen.moments, *seen.taps.values()) if part.requires_grad]
            torch.autograd.grad([part.sum() for part in parts], view)
        except Exception as error:  # a network may be anybody's
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"{teacher.name}: no gradient reaches the image ({reason_of(error)}); a teacher's forward must be free "
                "of no_grad, detach and numpy, and of checkpoints with use_reentrant=True"
            ) from error
    return Cost(float(counter.get_total_flops()), sum(kept.values()))
