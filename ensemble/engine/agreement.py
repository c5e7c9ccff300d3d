"""How far the teachers want the same of an image: cosines between their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_MAPS = "maps"


@dataclass(frozen=True, eq=False)
class Agreement:
    """Cosines between the teachers' parts of the gradient of a view; 0 where a part is 0."""

    cosines: dict[str, torch.Tensor]
    """(N,) float32, of each image, by pair of teachers as `A~B`."""
    maps: torch.Tensor
    """(N, H, W) float16: around each pixel, over the three colours and a box (see `radius`); the mean over pairs."""

    @property
    def mean(self) -> torch.Tensor:
        """(N,) the mean over pairs."""
        return torch.stack([*self.cosines.values()]).mean(0)

    def __repr__(self) -> str:
        means = ", ".join(f"{pair} {float(cosine.mean()):.2f}" for pair, cosine in self.cosines.items())
        return f"Agreement({len(self.maps)} images; mean cosine {means})"

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, for a file."""
        return {_MAPS: self.maps, **self.cosines}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Agreement | None:
        """The inverse of `tensors`; None where there are none."""
        if _MAPS not in tensors:
            return None
        return cls({name: cosine for name, cosine in tensors.items() if name != _MAPS}, tensors[_MAPS])

    @classmethod
    def joined(cls, batches: Sequence[Agreement]) -> Agreement:
        """Those of several batches, one after the other."""
        cosines = {name: torch.cat([batch.cosines[name] for batch in batches]) for name in batches[0].cosines}
        return cls(cosines, torch.cat([batch.maps for batch in batches]))


def radius(height: int, width: int) -> int:
    """Of the box: it is an eighth of the smaller side wide, 3 pixels at least, and an odd number."""
    return max(1, min(height, width) // 16)


def agreement_of(names: Sequence[str], parts: Iterator[torch.Tensor]) -> Agreement:
    """The agreement between teachers of these names, two or more, by their `parts` of the gradient (N, 3, H, W).

    An image's cosine is that of g_a and g_b as vectors of all its colour values. That of a pixel is the same over the
    box around it: sum g_a g_b / sqrt(sum g_a^2 sum g_b^2). Parts are taken one after the other and held in main memory.
    """
    held = [part.cpu() for part in parts]
    count, _, height, width = held[0].shape
    reach = radius(height, width)
    norms = [_sums(part, part, reach) for part in held]
    cosines, total = {}, torch.zeros(count, height, width, dtype=torch.float64)
    for a, b in itertools.combinations(range(len(held)), 2):
        whole, local = _sums(held[a], held[b], reach)
        cosines[f"{names[a]}~{names[b]}"] = _ratio(whole, norms[a][0], norms[b][0]).float()
        total += _ratio(local, norms[a][1], norms[b][1])
    return Agreement(cosines, (total / len(cosines)).half())


def _sums(a: torch.Tensor, b: torch.Tensor, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Products summed over each image, (N,), and averaged over the box around each pixel, (N, H, W), in float64."""
    products = (a.double() * b.double()).sum(1)
    side = 2 * reach + 1
    rows = F.avg_pool2d(products, (side, 1), 1, (reach, 0))
    return products.sum((1, 2)), F.avg_pool2d(rows, (1, side), 1, (0, reach))


def _ratio(product: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    scale = a.sqrt() * b.sqrt()
    return torch.where(scale > 0, product / scale, 0.0).clamp(-1, 1)
