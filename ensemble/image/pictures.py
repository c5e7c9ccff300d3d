"""Batches of images as pictures that people look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

_TILE = 96  # readable size of a tile in pixels; smaller images are enlarged by a whole factor
_GAP, _GROUP_GAP, _MARGIN = 2, 6, 16
_MAX_COLUMNS, _MAX_ROWS = 10, 20
_INK, _PALE = (34, 34, 34), (120, 120, 120)


def draw_grid(
    images: torch.Tensor,
    targets: torch.Tensor,
    class_names: Sequence[str] = (),
    columns: int = 10,
    noun: str = "classes",
    ends: bool = False,
) -> Image.Image:
    """One picture of the batch, `images` (N, 3, H, W), RGB in [0, 1], on white.

    Where every class has the same number of images, at least two: one row per class, its name at the left.
    Otherwise tiles in the order of their classes, names below. At most 20 rows and `columns` (itself at most
    10) images a row; a line at the bottom says what is left out, of classes or of what `noun` calls them.
    Small images are enlarged by a whole factor, each pixel a sharp square. Of a name that is too long the beginning
    stays, or with `ends` its end.

    Raises ValueError for shapes that do not fit, values that are not finite, a target without a name, or
    columns < 1.
    """
    if columns < 1:
        raise ValueError(f"grid: columns must be at least 1, got {columns}")
    images, targets = checked_batch(images, targets, class_names)
    columns = min(columns, _MAX_COLUMNS)
    counts = torch.bincount(targets)
    counts = counts[counts > 0]
    scale = max(1, round(_TILE / max(images.shape[-2:])))
    balanced = len(set(counts.tolist())) == 1 and int(counts[0]) > 1
    draw_layout = _rows_per_class if balanced else _captioned_tiles
    labels = {target: _label(target, class_names) for target in targets.unique().tolist()}
    return draw_layout(to_bytes(images), targets, labels, columns, scale, noun, ends)


def _rows_per_class(
    pixels: torch.Tensor, targets: torch.Tensor, names: dict[int, str], columns: int, scale: int, noun: str, ends: bool
) -> Image.Image:
    classes = targets.unique().tolist()
    shown = classes[:_MAX_ROWS]
    per_class = int((targets == classes[0]).sum())
    columns = min(columns, per_class)
    height, width = (side * scale for side in pixels.shape[1:3])
    font = _font(height, width)
    labels = [_fitted(names[target], font, 16 * font.size, ends) for target in shown]
    gutter = math.ceil(max(font.getlength(label) for label in labels)) + font.size
    left_out = []
    if len(shown) < len(classes):
        left_out.append(f"{len(shown)} of {len(classes)} {noun}")
    if columns < per_class:
        left_out.append(f"{columns} of {per_class} images a row")
    inner = gutter + columns * (width + _GAP) - _GAP, len(shown) * (height + _GROUP_GAP) - _GROUP_GAP
    canvas, draw = _canvas(*inner, left_out, font)
    for row, (target, label) in enumerate(zip(shown, labels, strict=True)):
        y = _MARGIN + row * (height + _GROUP_GAP)
        draw.text((_MARGIN + gutter - font.size, y + height / 2), label, _INK, font, anchor="rm")
        for column, image in enumerate(pixels[targets == target][:columns]):
            canvas.paste(_tile(image, scale), (_MARGIN + gutter + column * (width + _GAP), y))
    return canvas


def _captioned_tiles(
    pixels: torch.Tensor, targets: torch.Tensor, names: dict[int, str], columns: int, scale: int, noun: str, ends: bool
) -> Image.Image:
    order = targets.argsort(stable=True)[: columns * _MAX_ROWS]
    columns = min(columns, len(order))
    rows = math.ceil(len(order) / columns)
    height, width = (side * scale for side in pixels.shape[1:3])
    font = _font(height, width)
    step_x, step_y = width + 2 * _GROUP_GAP, height + 2 * font.size
    left_out = [f"{len(order)} of {len(targets)} images"] if len(order) < len(targets) else []
    canvas, draw = _canvas(columns * step_x - 2 * _GROUP_GAP, rows * step_y - font.size // 2, left_out, font)
    for place, index in enumerate(order.tolist()):
        x, y = _MARGIN + place % columns * step_x, _MARGIN + place // columns * step_y
        canvas.paste(_tile(pixels[index], scale), (x, y))
        label = _fitted(names[int(targets[index])], font, width + _GROUP_GAP, ends)
        draw.text((x + width / 2, y + height + font.size // 4), label, _INK, font, anchor="ma")
    return canvas


def _canvas(
    width: int, height: int, left_out: Sequence[str], font: ImageFont.FreeTypeFont
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    footer = f"shown: {', '.join(left_out)}" if left_out else ""
    width = max(width, math.ceil(font.getlength(footer)))
    footer_height = 2 * int(font.size) if footer else 0
    canvas = Image.new("RGB", (width + 2 * _MARGIN, height + footer_height + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    if footer:
        draw.text((_MARGIN, _MARGIN + height + font.size), footer, _PALE, font, anchor="la")
    return canvas, draw


def _font(height: int, width: int) -> Any:
    return ImageFont.load_default(size=max(12, min(28, round(min(height, width) / 6))))


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float, ends: bool) -> str:
    """`text`, its end, or with `ends` its beginning, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[1:].lstrip(" ,") if ends else text[:-1].rstrip(" ,")
    return f"…{text}" if ends else f"{text}…"


def _tile(pixels: torch.Tensor, scale: int) -> Image.Image:
    image = Image.fromarray(pixels.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _label(target: int, class_names: Sequence[str]) -> str:
    return class_names[target] if class_names else f"class {target}"


def to_eight_bits(images: torch.Tensor) -> torch.Tensor:
    """Float in [0, 1] as uint8 of the same shape, rounded; values outside are clipped."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """`to_eight_bits` of (N, 3, H, W), channels last: (N, H, W, 3)."""
    return to_eight_bits(images).permute(0, 2, 3, 1).contiguous()


def checked_batch(
    images: torch.Tensor, targets: torch.Tensor, class_names: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch on the CPU, contiguous float32 and int64."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or targets.shape != images.shape[:1]:
        raise ValueError(
            f"images: expected (N, 3, H, W) and (N,) targets, got {[*images.shape]} and {[*targets.shape]}"
        )
    images = images.detach().to("cpu", torch.float32).contiguous()
    targets = targets.detach().to("cpu", torch.int64).contiguous()
    if not images.isfinite().all():
        raise ValueError("images: not all values are finite")
    if targets.min() < 0 or (class_names and targets.max() >= len(class_names)):
        low, high = targets.min().item(), targets.max().item()
        raise ValueError(f"images: targets {low}..{high} for {len(class_names)} class names")
    return images, targets
