"""`invert.py calibrate`: from images on a disk to a file, and from the file to a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import PLUGIN, told
from PIL import Image
from torch import nn

from ensemble import invert
from ensemble.teachers.calibration import measure
from ensemble.teachers.measured import read_measurement, write_measurement
from models import ModelCard

NET = [*PLUGIN[:2], "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of noise of several brightnesses, of two classes."""
    folder = tmp_path_factory.mktemp("data")
    rng = torch.Generator().manual_seed(0)
    for i in range(24):
        pixels = torch.rand(40, 40, 3, generator=rng) * torch.rand(1, generator=rng) * 255
        file = folder / "train" / ("ant", "bee")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.byte().numpy()).save(file)
    return folder


def test_levels_of_a_network_with_batch_norm(run, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "a" / "tiny.safetensors"
    ended = run("calibrate", "tiny_a@random", *NET, "--data", data, "--images", 9, "--output", file)
    assert (ended.code, ended.errors) == (0, [])
    text = "levels of 1 layer(s), 0 of them with mean and variance, from 9 images"
    assert ended.output.splitlines()[-1] == f"{file}: {text}"
    found = read_measurement(file)
    assert (found.model, found.images, found.data) == ("tiny_a@random", 9, f"{data.name} train")
    refused = run("calibrate", "tiny_a@random", *NET, "--data", data, "--output", file)
    assert refused.code == 2 and "pass --overwrite" in refused.errors[0]
    before = file.read_bytes()
    again = run("calibrate", "tiny_a@random", *NET, "--data", data, "--images", 9, "--output", file, "--overwrite")
    assert again.code == 0 and file.read_bytes() == before
    out = tmp_path / "run"
    words = ["--set", f"teachers[0].statistics={file}", "--iterations", 2, "--output", out]
    assert run(*PLUGIN, "--models", "tiny_a@random", *words).code == 0
    rows = [json.loads(line) for line in (out / "per_layer.jsonl").read_text().splitlines()]
    assert [row["level"] for row in rows] == ["measured"]


def test_a_network_without(run, data: Path, tmp_path: Path) -> None:
    """Its convolution and its classifier are measured, counted, and matched."""
    file, out = tmp_path / "plain.safetensors", tmp_path / "run"
    teacher = [*PLUGIN, "--models", "tiny_plain@random", "--iterations", 2, "--output", out]
    ended = run(*teacher)
    assert ended.code == 2 and "a file of invert.py calibrate" in told(ended)[0]
    common = ["calibrate", "tiny_plain@random", *NET, "--data", data, "--output", file]
    nothing = run(*common)
    assert nothing.code == 2 and "no layer can be measured" in nothing.errors[0]
    assert run(*common, "--layers", "conv", "f*").code == 0
    statistics = ["--set", f"teachers[0].statistics={file}"]
    dry = run(*teacher, *statistics, "--dry-run")
    assert "0 of 0 layers with running statistics are matched, and 2 layers by measured ones" in dry.output
    assert run(*teacher, *statistics).code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["layers"] == {"tiny_plain": {"matched": 0, "measured": 2, "left_out": {}}}
    rows = [json.loads(line) for line in (out / "per_layer.jsonl").read_text().splitlines()]
    assert [row["layer"] for row in rows] == ["conv", "fc"]
    other = run(*PLUGIN, "--models", "tiny_b@random", *statistics, "--iterations", 2, "--output", tmp_path / "b")
    assert other.code == 2 and len(other.errors) == 1 and "of other weights than tiny_b" in other.errors[0]


def test_a_run_goes_on_with_the_file_that_it_began_with(run, data: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "tiny.safetensors", tmp_path / "run"
    calibrate = ["calibrate", "tiny_a@random", *NET, "--data", data, "--output", file, "--overwrite", "--images"]
    inversion = [*PLUGIN, "--models", "tiny_a@random", "--set", f"teachers[0].statistics={file}", "--output", out]
    assert run(*calibrate, 9).code == 0 and run(*inversion, "--iterations", 2).code == 0
    assert run(*calibrate, 8).code == 0
    ended = run(*inversion, "--iterations", 4, "--resume")
    assert ended.code == 2 and "weights, statistics, input size, mean or std of tiny_a are not those" in told(ended)[0]
    assert run(*calibrate, 9).code == 0 and run(*inversion, "--iterations", 4, "--resume").code == 0


@pytest.mark.filterwarnings("ignore:.*misses:UserWarning", "ignore:.*did not fall:UserWarning")
def test_modules_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    card = ModelCard("own", "test", 8, 3, mean=(0.5,) * 3, std=(0.25,) * 3)
    file = tmp_path / "own.safetensors"
    write_measurement(file, measure(net, card, torch.rand(12, 3, 8, 8).split(5)))
    teacher = {"model": (net, card), "statistics": file}
    results = invert([teacher], iterations=2, targets=[0, 1], progress=False, device="cpu")
    assert results is not None and [row["layer"] for row in results.per_layer] == ["1"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["tiny_x", "--output", "a.safetensors"], "unknown network 'tiny_x'"),
        (["tiny_a@random", "--output", "a.pt"], "let it end in .safetensors"),
        (["tiny_a@random", "--output", "a.safetensors", "--images", "1"], "--images 1: give at least two"),
        (["tiny_a@random", "--output", "a.safetensors", "--split", "x"], "holds no images at x/<class>/"),
        (["tiny_a@random", "--output", "a.safetensors", "--layers", "x*"], "matches 'x*'; there are 2: conv, fc"),
        (["tiny_a@random", "--output", "data.safetensors"], "is a folder"),
        (["tiny_a@random"], "--output"),
    ],
)
def test_mistakes_are_one_line(
    run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.safetensors").mkdir()
    ended = run("calibrate", *words, *NET, "--data", data)
    assert ended.code == 2 and len(ended.errors) == 1 and text in ended.errors[0]
    assert [file.name for file in tmp_path.iterdir()] == ["data.safetensors"]


def test_under_torchrun(run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = run("calibrate", "tiny_a@random", *NET, "--data", data, "--output", tmp_path / "a.safetensors")
    assert ended.code == 2 and "one process" in " ".join(ended.errors)


def test_a_file_that_is_not_there(run, tmp_path: Path) -> None:
    words = ["--set", "teachers[0].statistics=none.safetensors", "--iterations", 2, "--output", tmp_path / "run"]
    ended = run(*PLUGIN, "--models", "tiny_a@random", *words)
    assert ended.code == 2 and "statistics: none.safetensors is no file" in told(ended)[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("timm/vit_tiny_patch16_224:num_classes=3@random", 25),
        ("timm/convnext_atto:num_classes=3,input_size=32@random", 17),
    ],
)
def test_networks_of_timm(run, data: Path, tmp_path: Path, model: str, layers: int) -> None:
    file, out = tmp_path / "stats.safetensors", tmp_path / "run"
    ended = run("calibrate", model, "--device", "cpu", "--data", data, "--images", 6, "--output", file)
    assert (ended.code, ended.errors) == (0, [])
    assert f"levels of {layers} layer(s), {layers} of them with mean and variance, from 6 images" in ended.output
    words = ["--iterations", 3, "--targets", "0-1", "--precision", "fp32", "--device", "cpu", "--output", out]
    words += ["--set", f"teachers[0].statistics={file}", "--set", "objectives[1].convention=calibrated"]
    assert run("--models", model, *words).code == 0
    summary = json.loads((out / "summary.json").read_text())
    (counted,) = summary["layers"].values()
    assert counted["measured"] == layers
    (losses,) = summary["teachers"].values()
    assert losses["bn_matching"] > 0
