"""A dataset as it is read: items, workers, logits, soft labels, pictures; and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from ensemble import GeneratedImages
from ensemble.data import export
from ensemble.data.labelled import load_images
from ensemble.data.shards import batch_of, class_labels, pack, shard_name

COUNTS, CLASSES, SIZE = (5, 5, 3), 4, 6
NAMES = ["crane", "tench, Tinca tinca", "crane", "a/b"]
TEACHERS = {"quiet": 1.0, "loud": 40.0}


class Made:
    """Random tensors, and the folder that holds them, written without the code under test."""

    def __init__(self, folder: Path) -> None:
        rng = torch.Generator().manual_seed(0)
        total = sum(COUNTS)
        self.folder = folder
        self.images = torch.randint(0, 256, (total, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        self.targets = torch.arange(total) % CLASSES
        self.logits = {n: (s * torch.randn(total, CLASSES, generator=rng) + s).half() for n, s in TEACHERS.items()}
        (folder / "shards").mkdir(parents=True)
        rows, start = [], 0
        for batch, count in enumerate(COUNTS):
            part = slice(start, start + count)
            file = folder / "shards" / f"00000{batch}.safetensors"
            tensors = {"images": self.images[part].clone(), "targets": self.targets[part].clone()}
            tensors |= {f"logits/{name}": said[part].clone() for name, said in self.logits.items()}
            save_file(tensors, file, {"seed": str(batch)})
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            rows.append({"file": file.name, "images": count, "seed": batch, "sha256": sha256})
            start += count
        self.manifest = {
            "format": 1,
            "images": total,
            "size": SIZE,
            "class_names": NAMES,
            "teachers": {name: {"model": f"{name}@random", "sha256": None} for name in TEACHERS},
            "shards": rows,
        }
        self.write()

    def write(self) -> None:
        (self.folder / "manifest.json").write_text(json.dumps(self.manifest))

    def shard(self, batch: int) -> Path:
        return self.folder / "shards" / f"00000{batch}.safetensors"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "made")


def test_items(made: Made) -> None:
    data = GeneratedImages(made.folder, verify=True)
    assert len(data) == 13 and data.size == SIZE and data.teachers == ("quiet", "loud")
    assert data.class_names == tuple(NAMES) and torch.equal(data.targets, made.targets)
    for i in (0, 4, 5, 9, 10, 12, -1):
        image, target, logits = data[i]
        assert image.dtype == torch.float32 and torch.equal(image, made.images[i].float() / 255)
        assert target == int(made.targets[i]) and isinstance(target, int)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, torch.stack([made.logits[name][i].float() for name in TEACHERS]))
    with pytest.raises(TypeError, match=r"one whole number, not slice\(0, 2, None\); torch.utils.data.Subset"):
        data[0:2]  # type: ignore[index]
    with pytest.raises(IndexError):
        data[13]
    assert "13 images of 6 x 6; teachers quiet, loud" in repr(data)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_it(made: Made, method: str) -> None:
    data = GeneratedImages(made.folder)
    data[0]  # opened here, before the workers begin
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=method)
    images, targets, logits = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, made.images.float() / 255) and torch.equal(targets, made.targets)
    assert torch.equal(logits[:, 1], made.logits["loud"].float())


def test_a_pickle_holds_no_images(made: Made) -> None:
    data = GeneratedImages(made.folder)
    stored = pickle.dumps(data)
    assert len(stored) < 4000
    assert torch.equal(pickle.loads(stored)[12][0], data[12][0])


def test_whole_tensors(made: Made) -> None:
    data = GeneratedImages(made.folder)
    assert torch.equal(data.logits("loud"), made.logits["loud"]) and data.logits("loud").dtype == torch.float16
    labelled = data.labelled()
    assert torch.equal(labelled.images, made.images) and torch.equal(labelled.labels, made.targets)
    assert labelled.class_names == ("crane (0)", "tench, Tinca tinca", "crane (2)", "a/b")
    with pytest.raises(ValueError, match=r"'nobody' is no teacher of .*; they are quiet, loud"):
        data.logits("nobody")


def test_soft_labels_against_numpy(made: Made) -> None:
    """Centred, divided by the own scale times the mean one, softmax, mean over teachers."""
    temperature, centred = 3.0, []
    for said in made.logits.values():
        z = said.numpy().astype(np.float64)
        centred.append(z - z.mean(1, keepdims=True))
    scales = [np.sqrt((z**2).mean()) for z in centred]
    powers = [np.exp(z * np.mean(scales) / own / temperature) for z, own in zip(centred, scales, strict=True)]
    expected = np.mean([p / p.sum(1, keepdims=True) for p in powers], axis=0)
    found = GeneratedImages(made.folder).soft_labels(temperature)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_louder_teacher_counts_no_more(made: Made) -> None:
    """By hand: two teachers that differ by a factor alone say the same, and each as their mean scale does."""
    for batch, count in enumerate(COUNTS):
        rows = slice(sum(COUNTS[:batch]), sum(COUNTS[: batch + 1]))
        z = torch.tensor([[3.0, -1.0, -1.0, -1.0]]).repeat(count, 1)  # root mean square: sqrt(3)
        tensors = {"images": made.images[rows].clone(), "targets": made.targets[rows].clone()}
        save_file(tensors | {"logits/quiet": z.half(), "logits/loud": (z * 3 + 5).half()}, made.shard(batch))
    found = GeneratedImages(made.folder).soft_labels()
    assert torch.allclose(found, torch.tensor([6.0, -2.0, -2.0, -2.0]).softmax(0).expand(13, 4))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_positive(made: Made, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        GeneratedImages(made.folder).soft_labels(temperature)


def test_a_teacher_that_says_nothing_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path / "made")
    for batch, count in enumerate(COUNTS):
        zeros = {f"logits/{name}": torch.ones(count, CLASSES).half() for name in TEACHERS}
        images, targets = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
        save_file({"images": images, "targets": targets} | zeros, made.shard(batch))
    with pytest.raises(ValueError, match=f"soft labels: {next(iter(TEACHERS))} tells no classes apart"):
        GeneratedImages(made.folder).soft_labels()


# ---- pictures


def test_export_is_read_by_others(made: Made, tmp_path: Path) -> None:
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    data = GeneratedImages(made.folder)
    data.export(tmp_path / "pictures")
    read = folder(str(tmp_path / "pictures" / "train"))
    assert read.classes == ["a_b", "crane (0)", "crane (2)", "tench, Tinca tinca"] and len(read) == 13
    same = {"a_b": 3, "crane (0)": 0, "crane (2)": 2, "tench, Tinca tinca": 1}
    for name, target in same.items():
        ours = made.images[made.targets == target]
        files = sorted((tmp_path / "pictures" / "train" / name).iterdir())
        assert [file.name for file in files] == [f"{i:06d}.png" for i in range(len(ours))]
        for file, pixels in zip(files, ours, strict=True):
            with Image.open(file) as picture:
                np.testing.assert_array_equal(np.asarray(picture), pixels.permute(1, 2, 0).numpy())
    assert len(load_images(tmp_path / "pictures", "train")) == 13


def test_export_replaces_nothing(made: Made, tmp_path: Path) -> None:
    data = GeneratedImages(made.folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"export: .*full is not empty; give another folder"):
        data.export(tmp_path / "full")
    with pytest.raises(ValueError, match=r"export: .*file is a file; give a folder"):
        data.export(tmp_path / "file")
    with pytest.raises(ValueError, match=r"export: .* cannot be made"):
        data.export(tmp_path / "file" / "below")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "full", "made"]


def test_an_export_that_fails_leaves_nothing(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        GeneratedImages(made.folder).export(tmp_path / "pictures")
    assert [file.name for file in tmp_path.iterdir()] == ["made"]


def test_an_empty_folder_is_exported_to(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    GeneratedImages(made.folder).export(tmp_path / "empty")
    assert len(list((tmp_path / "empty").rglob("*.png"))) == 13
    assert (tmp_path / "empty").stat().st_mode == (made.folder).stat().st_mode


def test_names_of_classes() -> None:
    assert class_labels(["a", "b", "a"], 3) == ("a (0)", "b", "a (2)")
    assert class_labels(["a", "a", "a (0)"], 3) == ("a (0) (0)", "a (1)", "a (0) (2)")
    assert class_labels([], 3) == ("0000", "0001", "0002")
    long = export._folder_names([".hidden", "x" * 300, "..", " "])
    assert long == ("_hidden", "x" * 60 + " (1)", "_.", "_")
    alike = export._folder_names(["a/b", "a_b", "a_b (0)", " .hidden", "__MACOSX", "Thumbs.db"])
    assert alike == ("a_b (0) (0)", "a_b (1)", "a_b (0) (2)", "_hidden", "___MACOSX", "_Thumbs.db")


# ---- shards


def test_names_of_shards() -> None:
    assert [batch_of(shard_name(n)) for n in (0, 7, 1234567)] == [0, 7, 1234567]
    assert all(
        batch_of(n) is None for n in ("7.safetensors", "000007.pt", "0000007.safetensors", "000007.safetensors2")
    )


def test_a_shard_is_the_same_bytes(made: Made) -> None:
    said = {name: logits[:5].float() for name, logits in made.logits.items()}
    first, again = (pack(made.images[:5], made.targets[:5], said, seed=0) for _ in range(2))
    assert first == again == made.shard(0).read_bytes()


def test_logits_beyond_float16_stay_numbers() -> None:
    data = pack(torch.zeros(1, 3, 2, 2), torch.zeros(1), {"a": torch.tensor([[1e6, -1e6]])}, 0)
    assert torch.tensor([65504, -65504], dtype=torch.float16).numpy().tobytes() in data


# ---- what is refused


def refused(folder: Path, **options: bool) -> str:
    with pytest.raises(ValueError) as caught:
        GeneratedImages(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_dataset(made: Made, tmp_path: Path) -> None:
    assert "holds no dataset" in refused(tmp_path)
    assert "holds no dataset" in refused(tmp_path / "nowhere")
    (made.folder / "manifest.json").unlink()
    assert "is not finished; python invert.py dataset --output " in refused(made.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}'])
def test_no_manifest(made: Made, text: str) -> None:
    (made.folder / "manifest.json").write_text(text)
    assert "manifest" in refused(made.folder)


@pytest.mark.parametrize("change", [{"shards": []}, {"teachers": {}}, {"size": None}, {"shards": [{"file": "a"}]}])
def test_a_damaged_manifest(made: Made, change: dict[str, object]) -> None:
    made.manifest |= change
    made.write()
    assert "its manifest is damaged" in refused(made.folder)


def test_a_shard_that_is_gone_or_cut(made: Made) -> None:
    whole = made.shard(1).read_bytes()
    made.shard(1).write_bytes(whole[:-10])
    assert "000001.safetensors is damaged" in refused(made.folder)
    made.shard(1).write_bytes(b"")
    assert "000001.safetensors is damaged" in refused(made.folder)
    made.shard(1).unlink()
    assert "000001.safetensors is missing; make it again, by invert.py dataset --resume" in refused(made.folder)


def test_a_shard_that_is_another(made: Made) -> None:
    shutil.copy(made.shard(2), made.shard(1))
    assert "holds 3 images of 6 pixels, not 5 of 6" in refused(made.folder)
    save_file({"images": made.images[:5].clone(), "targets": made.targets[:5].clone()}, made.shard(1))
    assert "has logits of nobody, not of quiet, loud" in refused(made.folder)
    save_file({"other": torch.zeros(3)}, made.shard(1))
    assert "000001.safetensors is damaged" in refused(made.folder)


def test_bits_that_changed_are_found_where_it_is_asked_for(made: Made) -> None:
    data = bytearray(made.shard(1).read_bytes())
    data[-1] ^= 1
    made.shard(1).write_bytes(data)
    GeneratedImages(made.folder)
    assert "000001.safetensors has another SHA-256" in refused(made.folder, verify=True)


def test_targets_that_are_no_classes(made: Made) -> None:
    tensors = {"images": made.images[:5].clone(), "targets": torch.full((5,), 4)}
    save_file(tensors | {f"logits/{n}": said[:5].clone() for n, said in made.logits.items()}, made.shard(0))
    assert "its targets are none of the 4 classes" in refused(made.folder)
