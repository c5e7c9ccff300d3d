"""What units prefer: images, what is read of them, and pictures of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ensemble.image.pictures import draw_grid
from ensemble.machine.words import plural
from ensemble.objectives.selection import parse_selection
from ensemble.runs.folder import TOP_SHEET, UNITS_ALPHA, UNITS_SHEET, ResultsFolder
from ensemble.runs.results import Results


@dataclass(frozen=True, eq=False)
class Preferred:
    """What units prefer: image i is for unit i % len(names)."""

    results: Results
    names: tuple[str, ...]
    rows: list[dict[str, Any]]
    """A row an image: its unit, whether that is a class and the class's name, if it has one; of a unit at one place the
    box of pixels that it sees (top, left, bottom, right); `activation`, read from the saved 8 bits in fp32; what is
    left of it after JPEG, a blur and a rescaling; and with real images their `mean`, `std` and `largest`,
    `z` = (activation - mean) / std, `of_largest` = activation / largest, None where that is not above 0, and `above`:
    whether the activation is the larger."""
    top: torch.Tensor | None = None
    """(units, T, 3, H, W), uint8: the real images that excite each unit most."""

    @property
    def warnings(self) -> list[str]:
        """A line for what a user should know."""
        still = [row["unit"] for row in self.rows if any(row[key] == 0 for key in row if key.endswith("activation"))]
        if not still:
            return []
        first = ", ".join(still[:3])
        return [
            f"{plural(len(still), 'unit')} stayed at 0, where a rectified layer has no gradient ({first}); tap before "
            "the activation, or try another --seed"
        ]

    @property
    def images(self) -> torch.Tensor:
        """(N, 3, H, W), RGB in [0, 1]."""
        return self.results.images

    def sheet(self, columns: int = 10) -> Image.Image:
        """All images with the names of their units."""
        return self._drawn(self.images, self._units(), columns)

    def alpha_sheet(self, percentile: float = 80) -> Image.Image | None:
        """As `sheet`, faded to white where the gradient seldom went; None without `attribution=True`.

        Opacity is the attribution over its `percentile` of the image, at most 1 (after Fel et al. 2023, MACO).
        """
        maps = self.results.attribution
        if maps is None:
            return None
        bound = maps.flatten(1).quantile(percentile / 100, dim=1)[:, None, None].clamp_min(1e-30)
        opacity = (maps / bound).clamp(max=1)[:, None]
        return self._drawn(self.images * opacity + 1 - opacity, self._units())

    def top_sheet(self) -> Image.Image | None:
        """The real images that excite each unit most, a row a unit; None without real images."""
        if self.top is None:
            return None
        units, each = self.top.shape[:2]
        rows = torch.arange(units).repeat_interleave(each)
        return self._drawn(self.top.flatten(0, 1).float() / 255, rows)

    def write(self, folder: ResultsFolder) -> None:
        """The rows and the sheets."""
        sheets = {
            UNITS_SHEET: self.sheet(),
            TOP_SHEET: self.top_sheet(),
            UNITS_ALPHA: self.alpha_sheet(),
        }
        folder.write_units(self.rows, sheets)

    def _drawn(self, images: torch.Tensor, units: torch.Tensor, columns: int = 10) -> Image.Image:
        """A sheet whose names leave out the network where there is one, and keep their channel where they are long;
        classes have theirs."""
        parsed = [parse_selection(name) for name in self.names]
        networks = {summand.teacher for summands in parsed for summand in summands}
        names = list(self.names)
        if len(networks) == 1 and (network := networks.pop()):
            for i, summands in enumerate(parsed):
                for summand in summands:
                    names[i] = names[i].replace(f"{network}/{summand.tap}:", f"{summand.tap}:", 1)
        classes = {row["unit"]: row["class"] for row in self.rows if "class" in row}
        names = [classes.get(whole, name) for whole, name in zip(self.names, names, strict=True)]
        return draw_grid(images, units, names, columns, noun="units", ends=True)

    def _units(self) -> torch.Tensor:
        return torch.arange(len(self.images)) % len(self.names)
