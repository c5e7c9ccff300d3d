"""`invert.py audit`: from images on a disk to a page, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PLUGIN, write_pictures

from ensemble.applications import audit
from ensemble.privacy import pictures
from ensemble.privacy.folder import AuditFolder

MEMBERS = ["--members", "DATA", "--non-members", "DATA"]
NET = ["--model", "tiny_a@random", *PLUGIN[:2]]
RECIPE = """
model: tiny_a@random
data: {path: nowhere, train: train, test: test}
schedule: {epochs: 1, batch_size: 16, precision: fp32, recalibrate_bn: false}
augmentation: {crop_padding: 1}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 8 x 8 pixels, `train` and `test`, of the three classes that the network knows."""
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, {"train": 120, "test": 240}, ("circle", "square", "star"), size=8, blots=3)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_an_audit_with_everything(run, data: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "audit", data / "recipe.yaml"
    given = ["--reference", data, "--members", data, "--non-members", data, "--claimed", recipe]
    given += ["--references", 2, "--training", recipe, "--quick", "--output", out]
    ended = run("audit", *NET, *given, "--fail-if", "blind_auc>0.999")
    assert (ended.code, ended.errors) == (0, [])
    found = json.loads((out / "audit.json").read_text())
    assert found["schema_version"] == 1 and len(found["sentences"]) == 4
    words = {
        "shown",
        "indicated",
        "not distinguishable here",
        "undecided",
        "not tested",
        "consistent",
        "not consistent",
    }
    assert {finding["word"] for finding in found["findings"]} <= words
    assert found["facts"]["members"] == f"120: {data.name}, train"
    questions = {finding["question"] for finding in found["findings"]}
    assert "Is the claimed recipe consistent with the statistics?" in questions
    figures = found["figures"]
    assert figures["augmentation"] and figures["claim"] and figures["blind_auc"] is not None
    assert found["not_tested"] and found["tables"]

    page = (out / "audit.html").read_text()
    assert all(f"{question}</th>" in page for question in questions)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "default-src &#39;none&#39;" not in page
    assert "default-src 'none'" in page and page.count("data:image/webp") >= 8
    text = re.sub(r"<[^>]*>|base64,[^\"]*", " ", page).lower()
    for forbidden in ("safe", "anonymous", "compliant", "no leak"):
        assert not re.search(rf"\b{forbidden}\b", text), forbidden
    rows = list(csv.DictReader((out / "scores.csv").open()))
    if figures["loss_auc"] is not None:
        assert {row["attack"] for row in rows} >= {"loss", "lira", "rmia"}
    assert {row["set"] for row in rows} <= {"members", "non-members"}
    assert all((data / ("train" if row["set"] == "members" else "test") / row["image"]).is_file() for row in rows)

    refused = run("audit", *NET, "--output", out)
    assert refused.code == 2 and "--overwrite" in refused.errors[0]


def test_what_is_in_the_way_of_the_reference_networks_is_told_at_once(run, tmp_path: Path) -> None:
    (tmp_path / "references").touch()
    refused = run("audit", *NET, "--output", tmp_path)
    assert refused.code == 2
    assert refused.errors == [f"invert.py: output: {tmp_path / 'references'} is a file; give a folder"]


@pytest.mark.parametrize("non_members", ["{}", "{}:test", "{}/../{name}", "{}/test"])
def test_one_split_by_whatever_name_gives_halves(run, data: Path, tmp_path: Path, monkeypatch, non_members) -> None:
    """Where they overlapped, they would hide what is asked."""
    (data / "test" / "loose.png").write_bytes(next((data / "test" / "star").iterdir()).read_bytes())
    seen: list[Any] = []

    def stopped(given: Any, _: Any) -> None:
        seen.append(given)
        raise ValueError("seen")

    monkeypatch.setattr("ensemble.privacy.audit.audit", stopped)
    words = ["--reference", data, "--members", f"{data}:train"]
    words += ["--non-members", non_members.format(data, name=data.name)]
    ended = run("audit", *NET, *words, "--output", tmp_path / "a")
    (data / "test" / "loose.png").unlink()
    assert ended.errors == ["invert.py: seen"]
    (given,) = seen
    assert (len(given.reference), len(given.others), len(given.members)) == (120, 120, 120)
    both = [{image.numpy().tobytes() for image in part.images} for part in (given.reference, given.others)]
    assert not both[0] & both[1]


def test_two_audits_at_once(run, tmp_path: Path) -> None:
    with AuditFolder(tmp_path / "a").held():
        refused = run("audit", *NET, "--quick", "--output", tmp_path / "a")
    assert refused.code == 2 and "is in use by process" in refused.errors[0]


def test_the_network_alone(run, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    refused = run("audit", *NET, "--quick", "--output", out, "--fail-if", "loss_auc>0.9")
    assert refused.code == 2 and "loss_auc is measured with --members; give it, too" in refused.errors[0]
    assert not out.exists()
    assert run("audit", *NET, "--quick", "--output", out).code == 0
    found = json.loads((out / "audit.json").read_text())
    assert [finding["word"] for finding in found["findings"]] == ["not tested"]
    assert any("no reference images" in text for text in found["not_tested"])
    assert "shuffled statistics (null)" in (out / "audit.html").read_text()


def test_a_condition_that_is_met(run, data: Path, tmp_path: Path) -> None:
    given = [*NET, "--reference", data, "--quick", "--output", tmp_path / "audit"]
    ended = run("audit", *given, "--fail-if", "seam_difference>=-9")
    assert ended.code == 1 and ended.errors[-1].startswith("invert.py: --fail-if: seam_difference ")


def test_a_null_that_cannot_be_inverted_ends_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pictures.bn_inversions
    calls: list[int] = []

    def second_fails(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the loss is not finite")
        return made(*arguments)

    monkeypatch.setattr(pictures, "bn_inversions", second_fails)
    assert run("audit", *NET, "--quick", "--output", tmp_path / "a").code == 0
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert "the loss is not finite" in found["findings"][0]["reading"]


def test_a_network_that_keeps_no_statistics(run, data: Path, tmp_path: Path) -> None:
    words = ["--model", "tiny_plain@random", *PLUGIN[:2], "--reference", data, "--quick"]
    assert run("audit", *words, "--output", tmp_path / "a").code == 0
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert not found["findings"] and "the network keeps none" in found["not_tested"][1]
    refused = run("audit", *words, "--output", tmp_path / "c", "--fail-if", "cutmix_share>0.2")
    assert refused.code == 2 and "cutmix_share is read from BatchNorm statistics" in refused.errors[-1]
    # questions of membership alone: nothing is traced
    assert run("audit", *words, "--members", data, "--non-members", data, "--output", tmp_path / "b").code == 0
    found = json.loads((tmp_path / "b" / "audit.json").read_text())
    assert found["figures"]["blind_auc"] is not None and found["figures"]["tracing_auc"] is None


def other_recipe(name: str) -> str:
    """RECIPE with one thing that cannot be."""
    return {
        "WIDE": RECIPE.replace("crop_padding: 1", "crop_padding: 8"),
        "BEGUN": RECIPE.replace("tiny_a@random", "tiny_a@nowhere.safetensors"),
        "LARGE": RECIPE.replace("batch_size: 16", "batch_size: 110"),
    }[name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--members", "DATA"], "give both"),
        (["--references", 4], "give both"),
        (["--references", 1, "--training", "RECIPE"], "at least two"),
        (
            ["--members", "DATA", "--non-members", "DATA", "--references", 2, "--training", "OTHER"],
            "has 10 classes and sees 32 pixels",
        ),
        (["--fail-if", "los_auc>0.5"], "did you mean 'loss_auc'"),
        (["--reference", "DATA", "--claimed", "OTHER"], "--claimed: resnet20_cifar@random has 10 classes"),
        (["--reference", "DATA", "--claimed", "WIDE"], "--claimed: augmentation.crop_padding: 8 must be below"),
        ([*MEMBERS, "--references", 2, "--training", "BEGUN"], "a recipe whose model ends in @random"),
        ([*MEMBERS, "--references", 2, "--training", "LARGE"], "a random half of these members"),
        ([*MEMBERS, "--quick", "--fail-if", "tpr_1pct>0.05"], "it takes 1,000 non-members"),
        (["--members", "DATA:test", "--non-members", "DATA:test"], "give others"),
        (
            ["--reference", "DATA:train", "--members", "DATA:test", "--non-members", "DATA:train"],
            "the 120 images of one split are halved between them; give at least 128",
        ),
        (["--reference", "DATA:nothing"], "nothing"),
    ],
)
def test_mistakes_are_one_line(run, data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    words = [str(word).replace("DATA", str(data)).replace("RECIPE", str(data / "recipe.yaml")) for word in words]
    words = [word.replace("OTHER", "training/resnet20_cifar") for word in words]
    for name in {"WIDE", "BEGUN", "LARGE"} & {*words}:
        words[words.index(name)] = str(tmp_path / "other.yaml")
        (tmp_path / "other.yaml").write_text(other_recipe(name))
    ended = run("audit", *NET, *words, "--output", tmp_path / "a")
    assert ended.code == 2 and len(ended.errors) == 1 and message in ended.errors[0], ended
    assert not (tmp_path / "a").exists()


def test_how_many_were_drawn_of_how_many_stands_on_the_page(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_AT_MOST", 100)
    options = SimpleNamespace(reference=None, members=f"{data}:train", non_members=f"{data}:test")
    assert audit._images(options, 8)["sources"] == (  # type: ignore[arg-type]
        ("members", f"100 of 120 drawn: {data.name}, train"),
        ("non-members", f"100 of 240 drawn: {data.name}, test"),
    )
