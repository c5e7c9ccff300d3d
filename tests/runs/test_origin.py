"""Files that decide images: a run does not go on with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ensemble import invert, prefer
from ensemble.config.kinds import Kind
from ensemble.image.feature_inverter import FeatureInverter
from ensemble.image.generator import Generator
from ensemble.image.maco import Maco
from ensemble.image.start import FromFolder, FromImage
from ensemble.machine.progress import SilentProgress
from ensemble.objectives.activation import Activation
from ensemble.runs.dataset_job import dataset_job
from ensemble.runs.origin import Origin, file_digests
from models import create_model, files_of

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
    began = Origin(file_digests(kind.files_read()), {}, 1)
    began.check_weights(file_digests(kind.files_read()), "run")
    file.write_bytes(b"otherwise")
    with pytest.raises(ValueError, match=rf"resume: the contents of {file} are not those that the run began with"):
        began.check_weights(file_digests(kind.files_read()), "run")


@pytest.mark.parametrize("change", ["written", "added", "removed", "renamed"])
def test_a_folder_is_its_pictures_names_and_contents(change: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    before = file_digests(FromFolder(str(tmp_path)).files_read())
    (tmp_path / "notes.txt").touch()
    assert file_digests(FromFolder(str(tmp_path)).files_read()) == before
    match change:
        case "written":
            first.write_bytes(b"3")
        case "added":
            (tmp_path / "c.png").write_bytes(b"3")
        case "removed":
            second.unlink()
        case _:
            first.rename(tmp_path / "c.png")
    assert file_digests(FromFolder(str(tmp_path)).files_read()) != before


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


def _save(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    net, _ = create_model("resnet20_cifar:width=0.25@random")
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.rand(()))
    save_file(net.state_dict(), file)


def test_a_finished_run_is_known_by_the_files_of_its_networks(tmp_path: Path) -> None:
    """Nothing is loaded where all are as they were; where one is not, the run says so or reads its images anew."""
    teacher, judge, out = tmp_path / "teacher.safetensors", tmp_path / "judge.safetensors", tmp_path / "out"
    said = {"mean": [0.4] * 3, "std": [0.2] * 3}
    for seed, file in enumerate((teacher, judge)):
        _save(file, seed)
        file.with_suffix(".yaml").write_text(yaml.safe_dump(said))
    named = [f"resnet20_cifar:width=0.25@{file}" for file in (teacher, judge)]

    def again(**more: object):
        return invert([named[0]], verifiers=named[1], targets=["cat"], output=out, **more, **SHORT)  # type: ignore[arg-type]

    again()
    before = (out / "summary.json").stat().st_mtime_ns
    again(resume=True)
    assert (out / "summary.json").stat().st_mtime_ns == before
    first = load_file(out / "logits.safetensors")

    _save(judge, 5)
    again(resume=True)
    read = load_file(out / "logits.safetensors")
    (teachers, other) = sorted(read)
    assert [bool((read[name] == first[name]).all()) for name in (teachers, other)] == [True, False]

    teacher.with_suffix(".yaml").write_text(yaml.safe_dump(said | {"mean": [0.5] * 3}))
    with pytest.raises(ValueError, match=r"mean or std of resnet20_cifar:width=0\.25 are not those"):
        again(resume=True)
    teacher.with_suffix(".yaml").write_text(yaml.safe_dump(said))
    again(resume=True)
    _save(teacher, 6)
    with pytest.raises(ValueError, match=r"weights, .* of resnet20_cifar:width=0\.25 are not those"):
        again(resume=True)


@pytest.mark.parametrize("name", ["classes", "tag"])
def test_the_files_of_a_network_are_what_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "tag":
        Path("cifar10").write_text("no weights: the card's own go before a file of that name")
        assert files_of("resnet20_cifar@cifar10") == []
    else:
        Path("names.txt").write_text("\n".join("abcdefghij"))
        assert files_of("resnet20_cifar:class_names=names.txt@random") == [Path("names.txt")]


@pytest.mark.parametrize("change", ["weights", "start", "verifier"])
def test_a_finished_dataset_is_known_by_its_files(change: str, tmp_path: Path) -> None:
    teacher, judge, picture = (tmp_path / name for name in ("teacher.safetensors", "judge.safetensors", "start.png"))
    for file in (teacher, judge):
        _save(file, 0)
    Image.new("RGB", (32, 32), (10, 10, 10)).save(picture)
    recipe = {
        "teachers": [{"model": f"resnet20_cifar:width=0.25,mean=0.5,std=0.5@{teacher}"}],
        "stages": [{"iterations": 2}],
    }
    recipe["verifiers"] = [f"resnet20_cifar:width=0.25,mean=0.5,std=0.5@{judge}"]
    fields = {"image": {"start": {"kind": "image", "path": str(picture)}}, "runtime": {"device": "cpu"}}

    def again(**more: bool):
        return dataset_job(recipe, fields, (), tmp_path / "out", 4, **more)

    again().run(0.0, SilentProgress())
    assert again(resume=True).is_finished
    if change != "start":
        _save(teacher if change == "weights" else judge, 1)
    else:
        Image.new("RGB", (32, 32), (200, 10, 10)).save(picture)
    job = again(resume=True)
    assert not job.is_finished
    if change == "verifier":  # it decides no image
        assert job.run(0.0, SilentProgress()) is not None and again(resume=True).is_finished
        return
    with pytest.raises(ValueError, match="are not those that the dataset began with"):
        job.run(0.0, SilentProgress())


def test_a_file_that_is_not_there_is_said_to_be_none(tmp_path: Path) -> None:
    assert list(file_digests([str(tmp_path / "card.yaml")]).values()) == ["not there"]
