"""The networks that tell a student what they see, with the classes in the student's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensemble.data.labelled import LabelledImages
from ensemble.data.shards import own_labels
from ensemble.data.tree import few
from ensemble.image.transforms import resize_bilinear
from ensemble.machine.hardware import channels_last
from ensemble.training.reading import forward_logits
from models import ModelCard, check_reads, network_input


@dataclass(frozen=True)
class LabelTeacher:
    """A frozen network in eval mode."""

    name: str
    net: nn.Module
    card: ModelCard
    columns: torch.Tensor
    """Where the student's classes are among the network's logits."""

    @torch.no_grad()
    def read(self, rgb: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """The logits (N, classes), float32, of RGB in [0, 1] (N, 3, H, W), at the size that the network takes."""
        size = self.card.input_size
        if tuple(rgb.shape[2:]) != (size, size):
            rgb = resize_bilinear(rgb, size)
        batch = network_input(rgb, self.card).contiguous(memory_format=torch.channels_last)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return forward_logits(self.net, batch, self.card).float()[:, self.columns]

    def read_all(self, data: LabelledImages) -> torch.Tensor:
        """The logits of all images, on the CPU."""
        parts = data.images.split(500)
        return torch.cat([self.read(part.to(self.columns.device).float() / 255).cpu() for part in parts])


def made_teacher(
    name: str,
    net: nn.Module,
    card: ModelCard,
    class_names: Sequence[str],
    order: Sequence[str],
    device: torch.device,
    classes: Mapping[str, int] | None = None,
) -> LabelTeacher:
    """The teacher whose logits are to be those of `class_names`; of a card without names, they are of `order`.

    `classes` says where they are among its own, whatever the card says. Raises ValueError where it does not know all of
    these classes.
    """
    if classes is not None:
        return _made(name, net, card, [classes[label] for label in class_names], device)
    known = own_labels(card) or tuple(order)
    if len(known) != card.num_classes:
        raise ValueError(
            f"teacher: {name} has {card.num_classes} classes without names, the dataset {len(known)}; name another, or "
            "its classes, as NAME:class_names=FILE@WEIGHTS"
        )
    if not set(class_names) <= set(known):
        raise ValueError(
            f"teacher: {name} does not know the dataset's classes, of which it lacks "
            f"{few(set(class_names) - set(known))}; name another"
        )
    return _made(name, net, card, [known.index(label) for label in class_names], device)


def _made(name: str, net: nn.Module, card: ModelCard, columns: Sequence[int], device: torch.device) -> LabelTeacher:
    check_reads(f"teacher: {name}", net, card)
    return LabelTeacher(name, channels_last(net.to(device)).eval(), card, torch.tensor(columns, device=device))
