"""`invert.py leakage`: a whole small study, by one process and by two, what goes on after a kill, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import end, start, write_pictures

RECIPE = """
model: resnet8_cifar:width=0.25,num_classes=2@random
data: {path: nowhere}
arms:
  - {name: plain, teachers: 4}
  - {name: cutmix, teachers: 3, augmentation: {cutmix: 1.0}}
  - {name: half, teachers: 2, augmentation: {cutmix: 1.0, mix_probability: 0.5}}
  - {name: black, teachers: 1, augmentation: {crop_border: black}}
sequence: [cutmix, half]
pool: 360
canaries: 20
schedule: {epochs: 1, batch_size: 32, precision: fp32, recalibrate_bn: false}
inversions: {images: 6, steps: 3}
ensembles: {size: 2, each: 1}
stress: {networks: 1, images: 200, epochs: 2}
probed: 40
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, {"train": 360, "test": 300}, ("circle", "square"), size=32, blots=5)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study by two ranks."""
    out = tmp_path_factory.mktemp("leakage") / "two"
    given = ["leakage", "--recipe", data / "recipe.yaml", "--data", data, "--output", out]
    ended = end(start(*given, torchrun=["--standalone", "--nproc-per-node", "2"]), timeout=600)
    assert ended.code == 0, ended.errors
    return out


def test_a_study_has_a_page_figures_and_networks(finished: Path) -> None:
    found = json.loads((finished / "leakage.json").read_text())
    assert found["schema_version"] == 1 and not found["quick"]
    first = found["findings"][0]
    assert first["question"].startswith("Primary") and 0 <= first["value"] <= 1
    assert 1 / 35 <= found["figures"]["p"]["cutmix"] <= 1  # of 35 ways
    assert set(found["figures"]["sequence"]) == {"cutmix", "half"}
    assert len(found["figures"]["secondary"]) == 10
    titles = [table["title"] for table in found["tables"]]
    assert any("swap" in title for title in titles) and any("Membership in plain" in title for title in titles)
    assert any("learned 113 images by heart" in title for title in titles)
    page = (finished / "leakage.html").read_text()
    assert "What the statistics of resnet8_cifar" in page and "http" not in page.replace("http-equiv", "")
    assert "[–]" in page and not re.search(r">[^<]*\bnan\b", page)  # of the arm of one network
    silent, rest = found["sentences"][-2:]
    for row in found["findings"]:
        assert (row["question"] in silent) == (row["word"] == "not distinguishable here")
        assert (row["question"] in rest) == (row["word"] == "not tested")
    assert (finished / "membership.png").read_bytes().startswith(b"\x89PNG")
    rows = (finished / "networks.csv").read_text().splitlines()
    assert rows[0] == "arm,seed,detector,score" and sum(row.startswith("plain,0,") for row in rows) == 7


def test_it_goes_on_by_one_process_to_the_same_figures(run, data: Path, finished: Path) -> None:
    before, cells = (finished / "networks.csv").read_text(), sorted((finished / "cells").glob("*.json"))
    gone = [file for file in cells if "cutmix_01" in file.name or file.name.startswith("bank_plain_02")]
    assert len(gone) >= 6
    for file in [*gone, finished / "leakage.html"]:
        file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in cells if file not in gone}
    again = ["leakage", "--recipe", data / "recipe.yaml", "--data", data, "--output", finished]
    ended = run(*again)
    assert ended.code == 2 and "--resume" in ended.errors[0]
    ended = end(start(*again, "--resume"), timeout=600)  # with as many threads as the ranks: sums depend on them
    assert (ended.code, ended.output.count("study is done")) == (0, 1)
    assert (finished / "networks.csv").read_text() == before
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())


def test_damage_and_other_images_are_told(run, data: Path, finished: Path, tmp_path: Path) -> None:
    again = ["leakage", "--recipe", data / "recipe.yaml", "--output", finished, "--resume"]
    other = tmp_path / "other"
    shutil.copytree(data, other)
    next((other / "test" / "circle").iterdir()).unlink()
    ended = run(*again, "--data", other)
    assert ended.code == 2 and "other images" in ended.errors[0]
    file = finished / "cells" / "read_plain_00.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    ended = run(*again, "--data", data)
    assert ended.code == 2 and str(file) in ended.errors[0] and "damaged" in ended.errors[0]
    file.unlink()  # made again
    assert run(*again, "--data", data).code == 0 and file.read_bytes() == whole


def test_pairs_have_the_same_half_and_first_weights(data: Path) -> None:
    from ensemble.config.yaml_files import load_yaml
    from ensemble.privacy.study.bank import Bank
    from ensemble.privacy.study.recipe import parse_leakage_recipe

    recipe = load_yaml(data / "recipe.yaml")
    recipe["data"]["path"] = str(data)
    bank = Bank(parse_leakage_recipe(recipe))
    assert len(bank.pool) == 360 and int(bank.canaries.sum()) == 20
    assert torch.equal(bank.inside(0), bank.inside(0)) and not torch.equal(bank.inside(0), bank.inside(1))
    assert 130 < int(bank.inside(0).sum()) < 230
    members, others = bank.stress_sets(0)
    assert len(members) == len(others) == 113  # 200 are asked for; a third of the 340 that are no canaries


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--set", "sequence=[other]"], "other is none of the arms"),
        (["--set", "schedule.recalibrate_bn=true"], "recalibrate_bn"),
        (["--set", "plain=cutmix"], "compared with itself"),
        (["--set", "canaries=300"], "a quarter"),
        (["--set", "pool=40", "--set", "canaries=0"], "fewer than six batches"),
        (["--set", "model=resnet8_cifar@random"], "has 2 classes"),
        (["--set", "model=resnet20_cifar"], "@random"),
        (["--set", "schedule.label_smoothing=0.1"], "label_smoothing"),
        (["--set", "data.size=24"], "an eighth"),
        (["--set", "arms[0].teachers=1", "--set", "ensembles.each=0"], "two networks"),
        (["--set", "ensembles.size=4"], "sit there twice"),
        (["--set", "ensembles.each=2"], "2 of 2 networks take 4, and an arm has 3; ask for 1 at most"),
        (["--set", "arms[1].teachers=1", "--set", "ensembles.each=0"], "p is 0.2 at least and never 0.05"),
        (["--set", "sequence=[half, half]"], "names an arm twice"),
        (["--set", "sequence=[half, black]"], "black has no CutMix"),
        (["--set", "inversions.images=76"], "300 images, of which controls of 76 each are drawn; give 304"),
        (["--set", "arms[1].augmentation.flip=false"], "crop and flip alike"),
        (
            [word for arm in (0, 1) for word in ("--set", f"arms[{arm}].augmentation.crop_border=black")],
            "crops or flips that statistics are not re-estimated with",
        ),
        (["--resume", "--overwrite"], "not allowed with"),
        (["--recipe", "nothing_so_named"], "nothing_so_named"),
        (["--recipe", "resnet20_cifar"], "is a network, no recipe; a recipe of a study names arms"),
    ],
)
def test_mistakes_are_told_in_a_line(run, data: Path, tmp_path: Path, changes: list[str], said: str) -> None:
    recipe = [] if "--recipe" in changes else ["--recipe", data / "recipe.yaml"]
    ended = run("leakage", *recipe, "--data", data, "--output", tmp_path / "out", *changes)
    assert ended.code == 2 and len(ended.errors) == 1 and said in ended.errors[0], ended.errors
    assert not (tmp_path / "out").exists()


def test_another_folder_is_left_alone(run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for how in ("--resume", "--overwrite"):
        ended = run("leakage", "--recipe", data / "recipe.yaml", "--data", data, "--output", tmp_path, how)
        assert ended.code == 2 and "holds other files and no leakage study" in ended.errors[0]
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
