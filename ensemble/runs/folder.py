"""What observes the loop: the results folder, images, metrics and the progress display."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import Any, Protocol, TextIO

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from safetensors.torch import save_file

_FILES = ("images.safetensors", "grid.png", "metrics.jsonl", "summary.json", "recipe.yaml")
_CLASS_FOLDER = re.compile(r"\d{4,}(_.+)?")
_IMAGE_FILE = re.compile(r"\d+\.png(\.tmp)?")
_CHECKPOINT_FILE = re.compile(r"\w+-\d{8}\.(json|safetensors)(\.tmp)?")

_TILE = 96  # readable size of a tile in pixels; smaller images are enlarged by a whole factor
_GAP, _GROUP_GAP, _MARGIN = 2, 6, 16
_MAX_COLUMNS, _MAX_ROWS = 10, 20
_INK, _PALE = (34, 34, 34), (120, 120, 120)


# ---------------------------------------------------------------------------------------- the folder


def prepare_output(path: str | Path, overwrite: bool = False) -> Path:
    """Makes the results folder and returns it.

    With `overwrite`, removes what an earlier run wrote (recipe, metrics, summary, grid, images, checkpoints)
    and nothing else: in images/ only numbered PNG files in numbered class folders; in checkpoints/, where
    recipe.yaml or metrics.jsonl show that a run of ours wrote here, only files named like checkpoints.

    Raises ValueError where `path` is no folder, is not empty without `overwrite`, or images/ or checkpoints/
    is a link, which could lead anywhere.
    """
    path = Path(path).expanduser()
    check_output(path, overwrite)
    if path.is_dir():
        _remove_results(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_output(path: Path, overwrite: bool) -> None:
    """Raises ValueError where `path` is no folder, or is not empty without `overwrite`; changes nothing."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"output: {path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(
            f"output: {path} is not empty; pass --overwrite to replace its results, --resume to continue "
            "the run, or another folder"
        )


def _remove_results(path: Path) -> None:
    images, checkpoints = path / "images", path / "checkpoints"
    for folder in (images, checkpoints):
        if folder.is_symlink():
            raise ValueError(f"output: {folder} is a link; remove it yourself or give another folder")
    for folder in path.glob("replica*"):  # what a replica left that failed
        if folder.is_dir() and not folder.is_symlink() and folder.name.removeprefix("replica").isdigit():
            _remove_results(folder)
            with suppress(OSError):
                folder.rmdir()
    ours = any((path / name).is_file() for name in ("recipe.yaml", "metrics.jsonl"))
    doomed = [path / name for name in _FILES] + [path / f"{name}.tmp" for name in _FILES]
    class_folders = [
        folder
        for folder in (images.iterdir() if images.is_dir() else ())
        if folder.is_dir() and not folder.is_symlink() and _CLASS_FOLDER.fullmatch(folder.name)
    ]
    for folder in class_folders:
        doomed += [file for file in folder.iterdir() if _IMAGE_FILE.fullmatch(file.name)]
    if ours and checkpoints.is_dir():
        doomed += [file for file in checkpoints.iterdir() if _CHECKPOINT_FILE.fullmatch(file.name)]
    for file in doomed:
        if file.is_file() or file.is_symlink():
            file.unlink()
    for folder in (*class_folders, images, checkpoints):
        with suppress(OSError):  # absent, or holds files that are not ours
            folder.rmdir()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there replaces `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------- images


def save_images(
    folder: str | Path, images: torch.Tensor, targets: torch.Tensor, class_names: Sequence[str] = ()
) -> None:
    """Writes the batch below `folder` twice: exactly, and as pictures.

    images.safetensors: `images` float32 (N, 3, H, W), RGB in [0, 1], and `targets` int64 (N,).
    images/<class index, 4 digits>_<class name>/<n>.png: 8 bits, n counts within the class from 0.

    Raises ValueError for shapes that do not fit, values that are not finite, or a target without a name.
    """
    images, targets = _checked(images, targets, class_names)
    folder = Path(folder)
    with _replacing(folder / "images.safetensors") as temporary:
        save_file({"images": images, "targets": targets}, temporary)
    seen: dict[int, int] = {}
    for pixels, target in zip(_to_bytes(images), targets.tolist(), strict=True):
        n = seen.get(target, 0)
        seen[target] = n + 1
        name = _file_name(class_names[target]) if class_names else ""
        class_folder = f"{target:04d}_{name}" if name else f"{target:04d}"
        with _replacing(folder / "images" / class_folder / f"{n}.png") as file:
            Image.fromarray(pixels.numpy()).save(file, format="PNG")


def save_grid(
    path: str | Path,
    images: torch.Tensor,
    targets: torch.Tensor,
    class_names: Sequence[str] = (),
    columns: int = 10,
) -> None:
    """Writes one PNG of the batch, `images` (N, 3, H, W), RGB in [0, 1], on white.

    Where every class has the same number of images, at least two: one row per class, its name at the left.
    Otherwise tiles in the order of their classes, names below. At most 20 rows and `columns` (itself at most
    10) images a row; a line at the bottom says what is left out. Small images are enlarged by a whole factor,
    each pixel a sharp square.

    Raises ValueError for shapes that do not fit, values that are not finite, a target without a name, or
    columns < 1.
    """
    if columns < 1:
        raise ValueError(f"grid: columns must be at least 1, got {columns}")
    images, targets = _checked(images, targets, class_names)
    columns = min(columns, _MAX_COLUMNS)
    counts = torch.bincount(targets)
    counts = counts[counts > 0]
    scale = max(1, round(_TILE / max(images.shape[-2:])))
    balanced = len(set(counts.tolist())) == 1 and int(counts[0]) > 1
    draw_layout = _rows_per_class if balanced else _captioned_tiles
    canvas = draw_layout(_to_bytes(images), targets, class_names, columns, scale)
    with _replacing(Path(path)) as file:
        canvas.save(file, format="PNG")


def _rows_per_class(
    pixels: torch.Tensor, targets: torch.Tensor, class_names: Sequence[str], columns: int, scale: int
) -> Image.Image:
    classes = targets.unique().tolist()
    shown = classes[:_MAX_ROWS]
    per_class = int((targets == classes[0]).sum())
    columns = min(columns, per_class)
    height, width = (side * scale for side in pixels.shape[1:3])
    font = _font(height, width)
    labels = [_fitted(_label(target, class_names), font, 16 * font.size) for target in shown]
    gutter = math.ceil(max(font.getlength(label) for label in labels)) + font.size
    left_out = []
    if len(shown) < len(classes):
        left_out.append(f"{len(shown)} of {len(classes)} classes")
    if columns < per_class:
        left_out.append(f"{columns} of {per_class} images per class")
    inner = gutter + columns * (width + _GAP) - _GAP, len(shown) * (height + _GROUP_GAP) - _GROUP_GAP
    canvas, draw = _canvas(*inner, left_out, font)
    for row, (target, label) in enumerate(zip(shown, labels, strict=True)):
        y = _MARGIN + row * (height + _GROUP_GAP)
        draw.text((_MARGIN + gutter - font.size, y + height / 2), label, _INK, font, anchor="rm")
        for column, image in enumerate(pixels[targets == target][:columns]):
            canvas.paste(_tile(image, scale), (_MARGIN + gutter + column * (width + _GAP), y))
    return canvas


def _captioned_tiles(
    pixels: torch.Tensor, targets: torch.Tensor, class_names: Sequence[str], columns: int, scale: int
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
        label = _fitted(_label(int(targets[index]), class_names), font, width + _GROUP_GAP)
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


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1].rstrip(" ,")
    return text + "…"


def _tile(pixels: torch.Tensor, scale: int) -> Image.Image:
    image = Image.fromarray(pixels.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _label(target: int, class_names: Sequence[str]) -> str:
    return class_names[target] if class_names else f"class {target}"


def _file_name(class_name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", class_name).strip("._-")[:60]


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) float in [0, 1] as uint8 (N, H, W, 3), rounded; values outside are clipped."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _checked(
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


# ---------------------------------------------------------------------------------------- numbers


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as JSON, whole or not at all; dataclasses as objects, NaN and infinities as null."""
    text = json.dumps(_plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with _replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


class Metrics:
    """Appends one JSON object per line to a file; a line is on its way to the disk when `write` returns.

    A last line that a crash cut short is removed when the file is opened again. Close it, or use `with`.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends `values`; NaN and infinities become null."""
        self._file.write(json.dumps(_plain(values), allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_cut_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _plain(obj: Any) -> Any:
    """`obj` in JSON's own types."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (bool, str)) or obj is None:
        return obj
    if isinstance(obj, numbers.Integral):
        return int(obj)
    if isinstance(obj, numbers.Real):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"cannot write a {type(obj).__name__} as JSON")


# ---------------------------------------------------------------------------------------- progress


class ProgressReporter(Protocol):
    """What shows a run's progress. `close` ends the display and may be called at any time, also twice."""

    def start(self, total: int, resumed_at: int = 0) -> None:
        """The run has `total` steps, of which the first `resumed_at` were done before."""

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Step `step`, counted from 0, is done; `values` only where this step was recorded."""

    def message(self, text: str) -> None:
        """Shows one line beside the progress."""

    def close(self) -> None: ...


def progress_reporter(rank: int = 0, stream: TextIO | None = None) -> ProgressReporter:
    """A bar where `stream` (default: stdout) is a terminal, else plain lines; silence on ranks but 0."""
    stream = sys.stdout if stream is None else stream
    if rank != 0:
        return SilentProgress()
    return TerminalProgress(Console(file=stream)) if stream.isatty() else PlainProgress(stream)


class SilentProgress:
    """Shows nothing."""

    def start(self, total: int, resumed_at: int = 0) -> None:
        pass

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainProgress:
    """Lines for a log file: at most one every `interval` seconds, and one at the end."""

    def __init__(self, stream: TextIO, interval: float = 10.0) -> None:
        self._stream = stream
        self._interval = interval
        self._total = self._done = self._shown = 0
        self._shown_at = 0.0
        self._values: Mapping[str, float] = {}

    def start(self, total: int, resumed_at: int = 0) -> None:
        self._total, self._done, self._shown = total, resumed_at, resumed_at
        self._shown_at = time.monotonic()
        if resumed_at:
            self.message(f"resumed at step {resumed_at} of {total}")

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        self._done = step + 1
        if values:
            self._values = dict(values)
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._done > self._shown:
            self._show()

    def _show(self) -> None:
        now = time.monotonic()
        rate = (self._done - self._shown) / max(now - self._shown_at, 1e-9)
        parts = [f"step {self._done}/{self._total}", _rate(rate)]
        if rate > 0 and self._done < self._total:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        self._shown, self._shown_at = self._done, now
        self.message("  ".join([*parts, _losses(self._values)]).rstrip())


class _RateColumn(TextColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else "", style="progress.data.speed")


class TerminalProgress:
    """A bar with steps, rate, time left and the losses recorded last."""

    def __init__(self, console: Console) -> None:
        losses = TextColumn("{task.fields[losses]}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn("", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            losses,
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("", total=None, losses="", visible=False)

    def start(self, total: int, resumed_at: int = 0) -> None:
        self._progress.reset(self._task, total=total, completed=resumed_at, visible=True)
        self._progress.start()
        if resumed_at:
            self.message(f"resumed at step {resumed_at} of {total}")

    def step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        if values:
            self._progress.update(self._task, completed=step + 1, losses=_losses(values))
        else:
            self._progress.update(self._task, completed=step + 1)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def _losses(values: Mapping[str, float]) -> str:
    """Of a loss that each teacher has, as NAME/loss, the mean over the teachers: a line holds no more."""
    of_teachers: dict[str, list[float]] = {}
    for name, value in values.items():
        of_teachers.setdefault(name.rpartition("/")[2], []).append(value)
    return "  ".join(f"{name} {mean(each):.4g}" for name, each in of_teachers.items())


def _rate(steps_per_second: float) -> str:
    if steps_per_second >= 0.95:
        return f"{steps_per_second:.1f} steps/s"
    return f"{1 / max(steps_per_second, 1e-9):.1f} s/step"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
