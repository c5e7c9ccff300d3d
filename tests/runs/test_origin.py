"""Files that decide images: a run does not go on with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensemble import invert, prefer
from ensemble.config.kinds import Kind
from ensemble.image.feature_inverter import FeatureInverter
from ensemble.image.generator import Generator
from ensemble.image.maco import Maco
from ensemble.image.start import FromFolder, FromImage
from ensemble.objectives.activation import Activation
from ensemble.runs.origin import Origin, file_digests

SHORT = {"iterations": 2, "progress": False, "device": "cpu", "precision": "fp32"}


@pytest.mark.parametrize(
    "reading",
    [
        lambda path: FromImage(path),
        lambda path: Maco(path),
        lambda path: Generator(weights=path),
        lambda path: Generator(pretrained=FeatureInverter(path)),
        lambda path: Activation(("conv:0", f"conv:1 - conv:dir={path}")),
        lambda path: Activation(f"conv:mask={path}"),
    ],
)
def test_every_kind_says_which_file_it_reads(reading, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"as it was")
    kind: Kind = reading(str(file))
    began = Origin(file_digests([kind]), {}, 1)
    began.check_weights(file_digests([kind]), "run")
    file.write_bytes(b"otherwise")
    with pytest.raises(ValueError, match=rf"resume: the contents of {file} are not those that the run began with"):
        began.check_weights(file_digests([kind]), "run")


@pytest.mark.parametrize("change", ["written", "added", "removed", "renamed"])
def test_a_folder_is_its_pictures_names_and_contents(change: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    before = file_digests([FromFolder(str(tmp_path))])
    (tmp_path / "notes.txt").touch()
    assert file_digests([FromFolder(str(tmp_path))]) == before
    match change:
        case "written":
            first.write_bytes(b"3")
        case "added":
            (tmp_path / "c.png").write_bytes(b"3")
        case "removed":
            second.unlink()
        case _:
            first.rename(tmp_path / "c.png")
    assert file_digests([FromFolder(str(tmp_path))]) != before


@pytest.mark.parametrize("iterations", [2, 3])
def test_a_changed_mask_is_refused_whether_the_run_ended_or_goes_on(iterations: int, tmp_path: Path) -> None:
    file, settings = tmp_path / "mask.npy", {**SHORT, "output": tmp_path / "out"}
    np.save(file, np.random.default_rng(0).normal(size=(16, 32, 32)))
    units = f"layer1.1:mask={file}"
    made = prefer("resnet20_cifar", units, **settings)  # type: ignore[arg-type]
    again = prefer("resnet20_cifar", units, resume=True, **settings)  # type: ignore[arg-type]
    assert made is not None and again is not None and again.rows == made.rows
    np.save(file, -np.load(file))
    with pytest.raises(ValueError, match=r"the contents of .*mask.npy are not those"):
        prefer("resnet20_cifar", units, resume=True, **settings | {"iterations": iterations})  # type: ignore[arg-type]


def test_a_changed_picture_to_start_from_is_refused(tmp_path: Path) -> None:
    file, settings = tmp_path / "start.png", {**SHORT, "targets": ["cat"], "output": tmp_path / "out"}
    for value in (10, 200):
        Image.new("RGB", (32, 32), (value, value, value)).save(file)
        start = {"start": {"kind": "image", "path": str(file)}}
        if value == 10:
            invert(["resnet20_cifar"], image=start, **settings)
            continue
        with pytest.raises(ValueError, match=r"the contents of .*start.png are not those"):
            invert(["resnet20_cifar"], image=start, resume=True, **settings)
