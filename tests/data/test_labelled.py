"""Labelled images from folders, tars and zips: what counts as a class, links, damage, and what is told."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ensemble.data import archives, labelled
from ensemble.data.labelled import LabelledImages, any_images, check_same_classes, load_images

CLASSES = ("bird", "cat", "dog")
KINDS = ("folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "zip")

Files = dict[str, bytes]
"""What each file holds, by its path; a folder's path ends in `/`."""


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def files(per_class: int = 2) -> Files:
    """Pictures of one red each: 10 (class + 1) + number, and 100 more in the training split."""
    return {
        f"{split}/{name}/{i}.png": png(first + 10 * k + i)
        for split, first in (("train", 110), ("test", 10))
        for k, name in enumerate(CLASSES)
        for i in range(per_class)
    }


def make(path: Path, kind: str, content: Files) -> Path:
    """A folder or an archive with the files."""
    path.mkdir(parents=True, exist_ok=True)
    path = path / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    elif kind.startswith("tar"):
        with tarfile.open(path, f"w:{kind[4:]}") as archive:
            for name, data in content.items():
                add(archive, name, data)
    else:
        for name, data in content.items():
            file = path / name
            (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                file.write_bytes(data)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name.rstrip("/"))
    info.type, info.size = (tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE), len(data)
    archive.addfile(info, io.BytesIO(data))


def reds(data: LabelledImages) -> list[int]:
    assert (data.images[:, 0] == data.images[:, 0, :1, :1]).all() and not data.images[:, 1:].any()
    return data.images[:, 0, 0, 0].tolist()


def assert_clean(path: Path) -> None:
    """It holds what `files` made, and nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_images(path, "test")
    assert reds(data) == [10, 11, 20, 21, 30, 31] and data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.class_names == CLASSES and data.images.shape == (6, 3, 4, 4) and data.images.dtype == torch.uint8


def problem(path: Path, split: str = "test") -> str:
    """What is told: one line, and no warning."""
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter("error")
        load_images(path, split)
    assert "\n" not in str(error.value) and str(error.value).startswith("data: ") and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_folders_and_archives_are_one(kind: str, tmp_path: Path) -> None:
    assert_clean(make(tmp_path, kind, dict(reversed(files().items()))))
    assert reds(load_images(tmp_path / f"data.{kind}", "train")) == [110, 111, 120, 121, 130, 131]


@pytest.mark.parametrize("kind", KINDS)
def test_what_systems_leave_behind_is_no_class_and_no_image(kind: str, tmp_path: Path) -> None:
    clutter = {
        "test/.ipynb_checkpoints/0-checkpoint.png": png(0),
        "test/cat/.ipynb_checkpoints/0-checkpoint.png": png(0),
        "test/cat/._0.png": b"\0\5\x16\7",
        "test/.DS_Store": b"Bud1",
        "test/__MACOSX/0.png": png(0),
        "test/cat/__MACOSX/0.png": b"resources",
        "__MACOSX/test/cat/._0.png": b"resources",
        "__MACOSX/test/bat/0.png": b"resources",
        "test/Thumbs.db": b"",
        "test/dog/Thumbs.db": b"",
        "test/@eaDir/0.png": png(0),
        "test/labels.csv": b"",
    }
    assert_clean(make(tmp_path, kind, clutter | files()))


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("prefix", ["./", "/", "data/", "/srv/data/", "../../", "a/../b/"])
def test_archives_may_have_folders_above(kind: str, prefix: str, tmp_path: Path) -> None:
    """Nothing is extracted, so absolute paths and `..` do no harm."""
    inside = tmp_path / "inside"
    inside.mkdir()
    assert_clean(make(inside, kind, {prefix + name: data for name, data in files().items()}))
    assert [file.name for file in inside.iterdir()] == [f"data.{kind}"] and len(list(tmp_path.iterdir())) == 1


def test_a_zip_may_have_the_other_slash(tmp_path: Path) -> None:
    assert_clean(make(tmp_path, "zip", {name.replace("/", "\\"): data for name, data in files().items()}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_of_the_same_name_further_down_is_another(kind: str, tmp_path: Path) -> None:
    assert_clean(make(tmp_path, kind, {"train/test/more/0.png": png(0)} | files()))


@pytest.mark.parametrize("kind", KINDS)
def test_folders_below_a_class_belong_to_it(kind: str, tmp_path: Path) -> None:
    """As for `ImageFolder`."""
    data = load_images(make(tmp_path, kind, files() | {"test/cat/a/b/9.png": png(29)}), "test")
    assert reds(data) == [10, 11, 20, 21, 29, 30, 31] and data.class_names == CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_every_suffix_in_either_case(kind: str, tmp_path: Path) -> None:
    content = {}
    for i, (suffix, form) in enumerate(
        {"PNG": "PNG", "Bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "webp": "WEBP", "gif": "GIF", "JPG": "JPEG"}.items()
    ):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (100, 100, 100)).save(stream, form)
        content[f"test/cat/{i}.{suffix}"] = stream.getvalue()
    data = load_images(make(tmp_path, kind, content), "test")
    assert len(data) == 7 and (data.images.int() - 100).abs().max() <= 2


def test_grey_of_16_bits_is_scaled_and_photos_are_upright(tmp_path: Path) -> None:
    folder = tmp_path / "test/cat"
    folder.mkdir(parents=True)
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(values * 257).save(folder / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(values.astype(np.uint8)).save(folder / "1.png", exif=exif)
    images = load_images(tmp_path, "test").images
    for channel in range(3):
        assert images[0, channel].tolist() == values.tolist() == images[1, channel].flip(0, 1).tolist()


@pytest.mark.parametrize("kind", ("folder", "zip"))
def test_files_are_told_of_whatever_images_are_taken(kind: str, tmp_path: Path) -> None:
    data = load_images(make(tmp_path, kind, files()), "test")
    assert data.files == ("bird/0.png", "bird/1.png", "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    some = data.subset(torch.tensor([4, 1])), data.subset(slice(3, None, 2)), data.subset(data.labels == 1)
    assert [part.files for part in some] == [data.files[4:0:-3], data.files[3::2], data.files[2:4]]


def test_a_size_crops_the_middle(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 9, 3), dtype=np.uint8)
    (tmp_path / "test/cat").mkdir(parents=True)
    Image.fromarray(values).save(tmp_path / "test/cat/0.png")
    assert np.array_equal(load_images(tmp_path, "test", 4).images[0].permute(1, 2, 0), values[:, 2:6])
    (tmp_path / "test/cat/1.png").write_bytes(png(1))
    assert "2 sizes; give a size" in problem(tmp_path)


def test_long_strips_are_not_enlarged_whole(tmp_path: Path) -> None:
    """A strip of 1 x 100000 at 256 would have 6.5 gigapixels."""
    (tmp_path / "test/cat").mkdir(parents=True)
    for i, shape in enumerate([(1, 100000), (100000, 1)]):
        Image.fromarray(np.full(shape, 77, np.uint8)).save(tmp_path / f"test/cat/{i}.png")
    assert (load_images(tmp_path, "test", 256).images == 77).all()


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [b"", b"text", png(0, (64, 64))[:60]], ids=["empty", "text", "cut"])
def test_a_damaged_picture_is_told_by_name(kind: str, bad: bytes, tmp_path: Path) -> None:
    told = problem(make(tmp_path, kind, files() | {"test/dog/1.png": bad}))
    assert "test/dog/1.png" in told and "cannot be read as an image" in told


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_picture_is_told_by_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    told = problem(make(tmp_path, kind, files() | {"test/dog/1.png": png(0, (41, 1))}))
    assert "test/dog/1.png" in told and "more than 40 pixels; make it smaller" in told


@pytest.mark.parametrize("kind", KINDS[1:])
def test_cut_archives_are_told_wherever_they_are_cut(kind: str, tmp_path: Path) -> None:
    """Also at a boundary between two entries, where `tarfile` ends as if that were all."""
    whole = make(tmp_path, kind, files()).read_bytes()
    end = len(whole)
    if kind == "tar":  # from the end mark on there are zeros alone
        end = 512 * (len(whole.rstrip(b"\0")) // 512 + 1)
    cut = tmp_path / f"cut.{kind}"
    for n in {*range(0, end, 512), *range(0, end, 97), end - 1}:
        cut.write_bytes(whole[:n])
        told = problem(cut)
        assert "cut off" in told or "no tar or zip archive" in told


def test_garbage_between_entries_is_told(tmp_path: Path) -> None:
    path = make(tmp_path, "tar", files())
    data = bytearray(path.read_bytes())
    data[2048:2060] = b"\xff" * 12  # the third entry's name
    path.write_bytes(data)
    assert "no entry at byte 2048" in problem(path)


def test_a_zip_that_lists_fewer_entries_than_it_counts_is_told(tmp_path: Path) -> None:
    path = make(tmp_path, "zip", files())
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\5\6") + 10] += 1
    path.write_bytes(data)
    assert "12 of 13 entries" in problem(path)


def test_a_zip_of_another_version_is_told(tmp_path: Path) -> None:
    path = make(tmp_path, "zip", files())
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 6] = 143
    path.write_bytes(data)
    assert "zip file version 14.3" in problem(path)


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    for name, data in [("a.png", png(0)), ("a.txt", b"text"), ("a.tar.xz", lzma.compress(b"text")), ("empty.tar", b"")]:
        (tmp_path / name).write_bytes(data)
        assert "no tar or zip archive" in problem(tmp_path / name)
    assert "does not exist" in problem(tmp_path / "none.tar")


@pytest.mark.parametrize("change", [{8: 99}, {6: 1}], ids=["compression", "encrypted"])
def test_a_zip_that_cannot_be_unpacked_is_told(change: dict[int, int], tmp_path: Path) -> None:
    """In all entries the compression is one that nobody knows, or the flag for encryption is set."""
    path = make(tmp_path, "zip", files())
    data = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        place = data.find(mark)
        while place >= 0:
            for offset, value in change.items():
                data[place + offset + shift] = value
            place = data.find(mark, place + 4)
    path.write_bytes(data)
    told = problem(path)
    assert "test/bird/0.png" in told and ("encrypted" in told or "compression" in told)


# --- links ---------------------------------------------------------------------------------------------------------


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {"store/cat/0.png": png(20), "store/cat/1.png": png(21), "store/31.png": png(31)})
    for name in ("bird", "dog"):
        (path / "real" / name).mkdir(parents=True)
    for name, data in files().items():
        if name.startswith(("test/bird", "test/dog/0")):
            (path / name.replace("test", "real")).write_bytes(data)
    (path / "real/cat").symlink_to(path / "store/cat")
    (path / "real/dog/1.png").symlink_to("../../store/31.png")
    (path / "test").symlink_to("real")
    (path / "real/bird/round").symlink_to(path / "real/bird")
    assert_clean(path)


def test_links_to_nothing_in_a_folder_are_told(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", files())
    link = path / "test/dog/2.png"
    link.symlink_to("gone.png")
    assert "test/dog/2.png" in problem(path) and "is a link to gone.png, which is not there" in problem(path)
    link.unlink()
    (path / "test/emu").symlink_to("gone")
    assert "test/emu" in problem(path) and "is a link to gone" in problem(path)
    (path / "test/emu").unlink()
    (path / "test/dog/notes.txt").symlink_to("gone.txt")
    assert_clean(path)
    os.mkfifo(path / "test/dog/pipe.png")
    assert "test/dog/pipe.png" in problem(path) and "is no file" in problem(path)


def soft(archive: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    archive.addfile(info)


LINKS: dict[str, tuple[str, str, bytes]] = {
    "beside": ("test/dog/1.png", "../cat/31.png", tarfile.SYMTYPE),
    "elsewhere": ("test/dog/1.png", "../../store/31.png", tarfile.SYMTYPE),
    "absolute": ("test/dog/1.png", "/store/31.png", tarfile.SYMTYPE),
    "above the top": ("test/dog/1.png", "../../../../store/31.png", tarfile.SYMTYPE),
    "hard": ("test/dog/1.png", "store/31.png", tarfile.LNKTYPE),
    "of a link": ("test/dog/1.png", "../../store/link.png", tarfile.SYMTYPE),
    "a class": ("test/dog", "../store/dog", tarfile.SYMTYPE),
    "a split": ("test", "store/split", tarfile.SYMTYPE),
}


@pytest.mark.parametrize("kind", ["tar", "tar.xz"])
@pytest.mark.parametrize("link_first", [True, False])
@pytest.mark.parametrize("case", [name for name in LINKS if name != "beside"])
def test_links_in_a_tar_are_resolved_in_it(kind: str, link_first: bool, case: str, tmp_path: Path) -> None:
    place, target, form = LINKS[case]
    content = {name: data for name, data in files().items() if not f"{name}/".startswith(f"{place}/")}
    content |= {"store/31.png": png(31), "store/dog/0.png": png(30), "store/dog/1.png": png(31)}
    content |= {name.replace("test", "store/split"): data for name, data in files().items() if name.startswith("test")}
    path = tmp_path / f"data.{kind}"
    with tarfile.open(path, f"w:{kind[4:]}") as archive:
        for last in (False, True):
            if last is not link_first:
                soft(archive, place, target, form)
                soft(archive, "store/link.png", "31.png")
            else:
                for name, data in content.items():
                    add(archive, name, data)
    assert_clean(path)


def test_links_in_a_zip_are_resolved_in_it(tmp_path: Path) -> None:
    content = files() | {"store/31.png": png(31)}
    del content["test/dog/1.png"]
    path = make(tmp_path, "zip", content)
    for target in ("../../store/31.png", "gone.png"):
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo("test/dog/1.png" if target != "gone.png" else "test/dog/2.png")
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
        if target != "gone.png":
            assert_clean(path)
    assert "test/dog/2.png" in problem(path) and "is a link to gone.png" in problem(path)


@pytest.mark.parametrize("form", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/srv/store/1.png", "../../../etc/passwd", "2.png", "test/dog/2.png"])
def test_links_out_of_a_tar_are_told(form: bytes, target: str, tmp_path: Path) -> None:
    path = make(tmp_path, "tar", files())
    with tarfile.open(path, "a") as archive:
        soft(archive, "test/dog/2.png", target, form)
    told = problem(path)
    assert "test/dog/2.png" in told and f"is a link to {target}, which is not in the archive" in told


def test_of_entries_with_one_name_the_last_counts(tmp_path: Path) -> None:
    path = make(tmp_path, "tar", files() | {"test/dog/1.png": png(0)})
    with tarfile.open(path, "a") as archive:
        add(archive, "./test/dog/1.png", png(31))
    assert_clean(path)


def test_other_entries_are_told(tmp_path: Path) -> None:
    path = make(tmp_path, "tar", files())
    with tarfile.open(path, "a") as archive:
        soft(archive, "test/dog/2.png", "", tarfile.FIFOTYPE)
    assert "test/dog/2.png" in problem(path) and "is no file" in problem(path)


def test_one_pass_is_enough_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second one reads only what links lead to."""
    read: list[int] = []
    opened: list[Path] = []
    tar_members: Callable[..., object] = archives._tar_members

    def counted(path: Path, takes: Callable[[archives._Member], bool]) -> object:
        opened.append(path)
        return tar_members(path, lambda member: takes(member) and not read.append(member.index))

    monkeypatch.setattr(archives, "_tar_members", counted)
    path = make(tmp_path, "tar", files() | {"store/31.png": png(31)})
    assert_clean(path)
    assert len(opened) == 1 and read == [6, 7, 8, 9, 10, 11]  # the test split's
    load_images(path, "test", at_most=2)
    assert len(opened) == 2
    with tarfile.open(path, "a") as archive:
        soft(archive, "test/dog/1.png", "../../store/31.png")
    read.clear()
    assert_clean(path)
    assert len(opened) == 4 and read == [6, 7, 8, 9, 10, 11, 12]


# --- nothing, and classes that are empty or differ -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_found_it_is_told_what_is_there(kind: str, tmp_path: Path) -> None:
    content = {"test/cat/0.heic": b"", "test/cat/1.HEIC": b"", "test/dog/notes.txt": b"", "test/0.png": png(0)}
    told = problem(make(tmp_path, kind, content))
    assert (
        "holds no images at test/<class>/ (3 files left out: 2 .heic, 1 .txt; 1 in test itself, without a class)"
        in told
    )
    assert told.endswith("; expected files ending in .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff, .gif")
    assert "holds no images at nowhere/<class>/ (no files; its folders are test)" in problem(
        tmp_path / f"data.{kind}", "nowhere"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_class_is_told_with_what_is_left_out(kind: str, tmp_path: Path) -> None:
    content = files() | {"test/emu/0.avif": b"", "test/emu/1.avif": b"", "test/ant/": b"", "test/eel/.ipynb/0.png": b""}
    told = problem(make(tmp_path, kind, content))
    assert "3 of 6 classes of" in told
    assert "test/ant (no files), test/eel (no files), test/emu (2 files left out: 2 .avif); expected files" in told


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_endings_beside_pictures_are_told(kind: str, tmp_path: Path) -> None:
    name = CLASSES[0]
    path = make(tmp_path, kind, files() | {f"test/{name}/x.avif": b"-", f"test/{name}/._y.avif": b"-"})
    with pytest.warns(UserWarning, match=r"1 file left out: 1 \.avif, beside 6 pictures"):
        load_images(path, "test")


def test_loose_files_of_other_endings_are_told(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {"a.png": png(1), "b.heic": b"-", "c.txt": b"-"})
    with pytest.warns(UserWarning, match=r"1 file left out: 1 \.heic, beside 1 picture"):
        any_images(path, None, 4)


def test_a_link_to_a_folder_above_its_class_ends_there(tmp_path: Path) -> None:
    path, name = make(tmp_path, "folder", files()), CLASSES[0]
    (path / "test" / "whole").symlink_to(".")
    (path / "test" / name / "up").symlink_to("..")
    (path / "test" / name / "top").symlink_to("../..")
    assert_clean(path)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_accents_apart_from_their_letters_make_no_other_class(kind: str, tmp_path: Path) -> None:
    together, apart = "M\u00fcll", "Mu\u0308ll"
    path = make(tmp_path / "data", kind, {f"a/{together}/0.png": png(1), f"b/{apart}/0.png": png(2)})
    splits = {split: load_images(path, split) for split in ("a", "b")}
    assert {data.class_names for data in splits.values()} == {(together,)}
    check_same_classes(path, splits)


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    content = {name: data for name, data in files().items() if not name.startswith("test/dog")}
    path = make(tmp_path, "folder", content | {"test/emu/0.png": png(0), "test/ant/0.png": png(0)})
    train, test = (load_images(path, split) for split in ("train", "test"))
    check_same_classes(path, {"train": train, "again": train})
    with pytest.raises(ValueError) as error:
        check_same_classes(path, {"train": train, "test": test})
    assert str(error.value) == (
        f"data: the splits train (3) and test (4) of {path} have different classes: "
        "train lacks ant, emu; test lacks dog"
    )


def test_many_classes_that_differ_are_counted() -> None:
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    many = LabelledImages(images, torch.zeros(1, dtype=torch.int64), tuple(f"c{i}" for i in range(9)))
    one = LabelledImages(images, torch.zeros(1, dtype=torch.int64), ("c0",))
    with pytest.raises(ValueError, match=r"test lacks c1, c2, c3, c4, c5 and 3 more$"):
        check_same_classes("x", {"train": many, "test": one})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [1 << 28, 200, 0])
def test_some_that_the_seed_draws(kind: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of a folder and of any archive, whatever has room in memory; no others are decoded."""
    monkeypatch.setattr(archives, "_ROOM", room)
    path = make(tmp_path, kind, files(per_class=9))
    whole, decoded = set(reds(load_images(path, "train"))), list[object]()
    original = labelled.decode
    monkeypatch.setattr(labelled, "decode", lambda *given: decoded.append(given) or original(*given))
    some = load_images(path, "train", at_most=4, seed=1)
    assert len(some) == len(decoded) == 4 and set(reds(some)) < whole
    assert reds(some) == reds(load_images(make(tmp_path / "b", "folder", files(9)), "train", at_most=4, seed=1))
    assert reds(some) != reds(load_images(path, "train", at_most=4, seed=2))
    assert len(load_images(path, "train", at_most=50)) == 27
    names = [CLASSES[(red - 110) // 10] for red in reds(some)]
    assert [some.class_names[label] for label in some.labels] == names


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_class_as_many(kind: str, tmp_path: Path) -> None:
    """A class of two among large ones gives both, in any draw, and the large ones share what is left."""
    content = files(per_class=9)
    for i in range(2, 9):
        del content[f"train/{CLASSES[1]}/{i}.png"]
    path = make(tmp_path, kind, content)
    for seed in range(5):
        some = load_images(path, "train", at_most=11, evenly=True, seed=seed)
        assert sorted(torch.bincount(some.labels).tolist()) == [2, 4, 5]
    with pytest.raises(ValueError, match="2 images are fewer than the 3 classes; ask for more"):
        load_images(path, "train", at_most=2, evenly=True)


# --- layouts without splits, or without classes ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("above", ["", "pets/"])
def test_classes_at_the_top_are_taken_where_there_are_no_splits(kind: str, above: str, tmp_path: Path) -> None:
    content = {above + name.removeprefix("test/"): data for name, data in files().items() if name.startswith("test/")}
    path = make(tmp_path, kind, content)
    found = load_images(path, "test", layout="classes")
    assert found.class_names == CLASSES and found.split == ""
    assert found.images[:, 0, 0, 0].tolist() == [10, 11, 20, 21, 30, 31]
    assert torch.equal(any_images(path, None, 4).images, found.images)
    assert "holds no images at test/<class>/ (no files; its folders are bird, cat, dog)" in problem(path)
    with pytest.raises(ValueError, match=r"no images at test/<class>/"):
        any_images(path, "test", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_another_split_is_not_taken_for_the_asked_one(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind, {name: data for name, data in files().items() if name.startswith("train/")})
    for layout in ("splits", "classes", "pictures"):
        with pytest.raises(ValueError, match=r"at test/<class>/ \(no files; its folders are train\); name the split"):
            load_images(path, "test", layout=layout)
    assert load_images(path, "train", layout="pictures").split == "train"


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_without_classes(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind, {f"{i}.png": png(i) for i in (3, 1, 2)} | {"notes.txt": b"", "Thumbs.db": b""})
    found = load_images(path, "test", layout="pictures")
    assert found.class_names == ("",) and found.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="in it itself, without a class"):
        load_images(path, "test", layout="classes")
    inside = make(tmp_path / "split", kind, {f"train/{i}.png": png(i) for i in (5, 4)})
    assert any_images(inside, None, 4).images[:, 0, 0, 0].tolist() == [4, 5]


def test_a_folder_of_splits_is_no_class(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {f"cifar/{name}": data for name, data in files().items()})
    with pytest.raises(ValueError, match="its folders are test, train"):
        load_images(path, "test", layout="pictures")


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_may_be_called_train(kind: str, tmp_path: Path) -> None:
    path = make(
        tmp_path, kind, {f"{name}/{i}.png": png(10 * k + i) for k, name in enumerate(("bus", "train")) for i in (1, 2)}
    )
    for split in ("train", "test"):
        found = load_images(path, split, layout="classes")
        assert found.class_names == ("bus", "train") and found.split == "" and len(found) == 4
    flat = make(tmp_path / "flat", kind, {f"{split}/{i}.png": png(i) for split, i in (("train", 1), ("test", 2))})
    assert any_images(flat, None, 4).images[:, 0, 0, 0].tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_beside_folders_are_not_left_out(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind, {"cat/0.png": png(7), "1.png": png(8), "2.png": png(9), "README.md": b""})
    assert sorted(any_images(path, None, 4).images[:, 0, 0, 0].tolist()) == [7, 8, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_and_an_archive_are_read_alike(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind, {"pets/cat/1.png": png(1), "pets/dog/1.png": png(2), "README.md": b""})
    assert load_images(path, "test", layout="classes").class_names == ("cat", "dog")
    single = make(tmp_path / "single", kind, {"cat/a/1.png": png(1)})
    assert load_images(single, "test", layout="classes").class_names == ("cat",)
