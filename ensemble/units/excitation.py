"""How much images excite units: clean readings, in fp32, whatever the images were made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ensemble.objectives.activation import Activation
from ensemble.objectives.selection import Unit
from ensemble.teachers.teacher import Observation, Profile, Teacher
from models import ModelCard

BATCH = 50
"""Images at once."""


class Readers:
    """Networks that say how much images excite the units of one selection."""

    def __init__(
        self,
        networks: Mapping[str, tuple[torch.nn.Module, ModelCard]],
        term: Activation,
        device: torch.device | str = "cpu",
    ) -> None:
        """`networks` by the names that the selection may have; ValueError where it names what is not there."""
        self.term = term
        self._teachers = [Teacher(name, net, card, device=device) for name, (net, card) in networks.items()]
        for teacher in self._teachers:
            if taps := term.needs(teacher.profile()):
                teacher.tap(taps, alone=True)
        self.profiles: list[Profile] = [teacher.profile() for teacher in self._teachers]
        term.check(self.profiles)
        self.names = term.names(self.profiles)
        """What each unit is called."""

    @property
    def classes(self) -> list[tuple[ModelCard, int] | None]:
        """Of each unit the class that it is, and whose: the first network's that it is of; None of one that is none."""
        cards, parts = [profile.card for profile in self.profiles], self.parts.values()
        found: list[tuple[ModelCard, int] | None] = []
        for of_networks in zip(*parts, strict=True):
            own = [(card, units) for card, units in zip(cards, of_networks, strict=True) if units]
            first, (unit, *_) = own[0]
            is_class = all(len(units) == 1 and units[0].of_class for _, units in own)
            is_one = all(units[0].channels == unit.channels for card, units in own if card.shares_classes(first))
            found.append((first, unit.channels[0]) if is_class and is_one else None)
        return found

    @property
    def parts(self) -> dict[str, list[tuple[Unit, ...]]]:
        """Of each network by its name: what each unit is in it."""
        found = {profile.name: self.term.units_of(profile) for profile in self.profiles}
        return {name: units if any(units) else [()] * len(self.names) for name, units in found.items()}

    def is_named(self, network: str, unit: int) -> bool:
        """Whether the unit of that number has a part in the network."""
        return bool(self.parts[network][unit])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Excitations (M, units), of images (M, 3, H, W), uint8 or RGB in [0, 1]: of several networks the mean."""
        return torch.stack([*self.each(images).values()]).mean(0)

    def own(self, images: torch.Tensor, which: Sequence[int]) -> dict[str, torch.Tensor]:
        """Of each network by its name: how much image m excites the unit `which[m]`, (M,)."""
        return self._read(images, lambda seen, profile, part: self.term.excitations(seen, profile, which[part]))

    def each(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of each network by its name: how much every image excites every unit, (M, units)."""

        def columns(seen: Observation, profile: Profile, part: slice) -> torch.Tensor:
            rows = [self.term.excitations(seen, profile, [k] * len(seen.logits)) for k in range(len(self.names))]
            return torch.stack(rows, 1)

        return self._read(images, columns)

    def differentiable(self, images: torch.Tensor, which: Sequence[int]) -> torch.Tensor:
        """As `own`, added up over the networks, (M,), in one pass and with its gradient."""
        found = images.new_zeros(len(images), dtype=torch.float64)
        for teacher, profile in zip(self._teachers, self.profiles, strict=True):
            seen = teacher.observe(images.to(teacher.device))
            found = found + self.term.excitations(seen, profile, which).to(images.device)
        return found

    @torch.no_grad()
    def _read(
        self, images: torch.Tensor, read: Callable[[Observation, Profile, slice], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What `read` says of each batch as each network sees it, `part` of the images, one after the other."""
        found: dict[str, list[torch.Tensor]] = {teacher.name: [] for teacher in self._teachers}
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            view = in_unit_range(images[part])
            for teacher, profile in zip(self._teachers, self.profiles, strict=True):
                found[teacher.name].append(read(teacher.observe(view.to(teacher.device)), profile, part).cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}


def in_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 as RGB in [0, 1], float32; what is in [0, 1] stays."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
