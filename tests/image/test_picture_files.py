"""What counts as a picture, and how each is decoded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ensemble.image.files import SUFFIXES, decode, is_clutter, is_picture, left_out, list_images, read_image

VALUES = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = VALUES[..., 0]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def problem(source: Path | bytes) -> str:
    """What `decode` tells: one line, and no warning."""
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter("error")
        decode(source, "data: it")
    assert "\n" not in str(error.value) and str(error.value).startswith("data: it cannot be read as an image (")
    return str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_8_bits_are_as_they_were(kind: str, tmp_path: Path) -> None:
    data = saved(Image.fromarray(VALUES), kind)
    assert np.array_equal(pixels(data), VALUES)
    (tmp_path / "a").write_bytes(data)
    assert np.array_equal(np.asarray(decode(tmp_path / "a", "it")), VALUES)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled(kind: str) -> None:
    """257 v is exactly v, as 65535 = 255 x 257; what is between is rounded."""
    assert np.array_equal(pixels(saved(Image.fromarray(GREY.astype(np.uint16) * 257), kind)), grey(GREY))
    values = np.array([[0, 128, 129, 385, 386, 65535]], np.uint16)
    assert pixels(saved(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 0, 1, 1, 2, 255]


def test_big_endian_grey_of_16_bits_is_scaled() -> None:
    image = Image.frombytes("I;16B", (8, 6), (GREY.astype(">u2") * 257).tobytes())
    assert np.array_equal(pixels(saved(image, "TIFF")), grey(GREY))


def test_grey_of_12_bits_is_scaled() -> None:
    """A TIFF of two pixels, 0 and 4095, packed into three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 12) + b"\x00\x0f\xff\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    assert pixels(data)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GREY.astype(np.int32) * 257, GREY),
        (GREY.astype(np.int32), GREY),
        (GREY.astype(np.float32), GREY),
        (GREY.astype(np.float32) / 255, GREY),
        (GREY.astype(np.float32) * 257, GREY),
    ],
)
def test_numbers_are_scaled_by_the_range_that_holds_them(values: np.ndarray, expected: np.ndarray) -> None:
    assert np.array_equal(pixels(saved(Image.fromarray(values), "TIFF")), grey(expected))


@pytest.mark.parametrize("bad", [-1.0, 70000.0, np.nan])
def test_numbers_without_a_range_are_refused(bad: float) -> None:
    values = GREY.astype(np.float32)
    values[0, 0] = bad
    assert "save it with 8 or 16 bits" in problem(saved(Image.fromarray(values), "TIFF"))
    if bad == bad:
        assert "grey values from" in problem(saved(Image.fromarray(values.astype(np.int32)), "TIFF"))


def test_grey_and_one_bit() -> None:
    assert np.array_equal(pixels(saved(Image.fromarray(GREY), "PNG")), grey(GREY))
    black_and_white = Image.fromarray(GREY > 127)
    assert black_and_white.mode == "1"
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(pixels(saved(black_and_white, kind)), grey((GREY > 127).astype(np.uint8) * 255))


def test_transparency_is_dropped_and_the_stored_colours_stay() -> None:
    """As torchvision's loader does: `Image.open(file).convert("RGB")`."""
    alpha = np.random.default_rng(1).integers(0, 256, (6, 8, 1), dtype=np.uint8)
    alpha[0] = 0
    assert np.array_equal(pixels(saved(Image.fromarray(np.dstack([VALUES, alpha])), "PNG")), VALUES)
    assert np.array_equal(pixels(saved(Image.fromarray(np.dstack([GREY, alpha[..., 0]])), "PNG")), grey(GREY))


def test_palettes_show_their_colours_and_warn_of_nothing() -> None:
    indexed = Image.fromarray(GREY % 3).convert("L")
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)[GREY % 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, options in [("PNG", {}), ("GIF", {}), ("PNG", {"transparency": bytes([0, 128, 255])})]:
            assert np.array_equal(pixels(saved(indexed, kind, **options)), colours)


def test_cmyk_is_converted() -> None:
    flat = Image.new("RGB", (8, 8), (200, 40, 90)).convert("CMYK")
    assert np.abs(pixels(saved(flat, "TIFF")).astype(int) - [200, 40, 90]).max() == 0
    assert np.abs(pixels(saved(flat, "JPEG", quality=100)).astype(int) - [200, 40, 90]).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), (v, v, v)) for v in (50, 250)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert (pixels(data) == 50).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_the_camera_orientation_is_undone(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(VALUES), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    assert pixels(data).shape == ((8, 6, 3) if orientation > 4 else (6, 8, 3))


def test_damaged_metadata_do_not_matter() -> None:
    data = saved(Image.fromarray(VALUES), "JPEG", quality=100)
    broken = saved(Image.fromarray(VALUES), "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(broken), pixels(data))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_huge_picture_is_told_by_name(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0))
    assert "pixels; make it smaller" in problem(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))


def test_a_large_picture_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(saved(Image.fromarray(VALUES), "PNG")), VALUES)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_and_empty_files_are_told_by_name(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = saved(noise, kind)
    for n in (0, 3, 12, len(data) // 2):
        assert problem(data[:n])
        (tmp_path / "a.png").write_bytes(data[:n])
        assert problem(tmp_path / "a.png")


def test_broken_chunks_are_told_by_name() -> None:
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)), "PNG")
    place = data.find(b"IDAT")
    assert problem(data[: place + 40] + bytes([data[place + 40] ^ 255]) + data[place + 41 :])
    assert problem(data[:place] + b"\0\1\2\3" + data[place + 4 :])


def test_missing_files_are_told(tmp_path: Path) -> None:
    assert "No such file" in problem(tmp_path / "none.png")


def test_nothing_but_the_line_is_written(tmp_path: Path) -> None:
    """libtiff writes of damage to the process's stderr, Pillow logs it."""
    data = saved(Image.fromarray(np.zeros((40, 40, 3), np.uint8)), "TIFF", compression="tiff_lzw")
    entry = struct.pack("<HHI", 277, 3, 1)  # samples per pixel
    (tmp_path / "a.tif").write_bytes(data[:8] + b"\xff" * 40 + data[48:])
    (tmp_path / "b.tif").write_bytes(data.replace(entry + b"\3", entry + b"\xff"))
    program = (
        "import pathlib, sys; from ensemble.image.files import decode\n"
        "try: decode(pathlib.Path(sys.argv[1]), 'it')\n"
        "except ValueError: print('told', file=sys.stderr)"
    )
    for name in ("a.tif", "b.tif"):
        ended = subprocess.run([sys.executable, "-c", program, tmp_path / name], capture_output=True, text=True)
        assert ended.stderr == "told\n"


def test_names() -> None:
    assert all(is_picture("a" + suffix) and is_picture("A" + suffix.upper()) for suffix in SUFFIXES)
    for name in (".ipynb_checkpoints", "._0.png", ".DS_Store", "__MACOSX", "Thumbs.db", "thumbs.db", "Desktop.ini"):
        assert is_clutter(name) and not is_picture(name)
    assert not is_clutter("cat") and not is_clutter("_cat") and not is_picture("notes.txt") and not is_picture("png")
    assert left_out([]) == "no files" and left_out(["a.txt"]) == "1 file left out: 1 .txt"
    assert left_out(["a.HEIC", "b.heic", "._c.png", "d"]) == "4 files left out: 2 .heic, 1 hidden, 1 without ending"


def test_starts_are_read_by_the_same_rules(tmp_path: Path) -> None:
    for name in ("b.TIF", "a.gif", "c.Png"):
        kind = {"tif": "TIFF", "gif": "GIF", "png": "PNG"}[name[2:].lower()]
        Image.new("L", (4, 4), 51).save(tmp_path / name, kind)
    (tmp_path / "._c.png").write_bytes(b"no image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "d.png").symlink_to(tmp_path / "c.Png")
    assert [file.name for file in list_images(tmp_path)] == ["a.gif", "b.TIF", "c.Png", "d.png"]
    Image.fromarray(np.full((4, 4), 51 * 257, np.uint16)).save(tmp_path / "deep.png")
    for file in list_images(tmp_path):
        assert read_image(file, 4).unique().tolist() == pytest.approx([0.2])
    (tmp_path / "e.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"e\.png is not a file"):
        read_image(list_images(tmp_path)[-1], 4)


def test_a_folder_without_pictures_counts_what_is_left_out(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "notes.txt", "._a.png"):
        (tmp_path / name).write_bytes(b"")
    expected = r"holds no images \(4 files left out: 2 \.heic, 1 hidden, 1 \.txt\); expected files ending in \.jpg, .*"
    with pytest.raises(ValueError, match=expected):
        list_images(tmp_path)
