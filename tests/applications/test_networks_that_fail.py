"""A network that cannot do its part is told in one line before anything is made, whatever its part is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ONE, PLUGIN, Ended, one_line, write_pictures
from torch import nn

from models import ModelCard, check_reads

FAILING = ["--plugin", str(Path(__file__).with_name("failing.py"))]
CPU = ["--device", "cpu"]
SHORT = ["--iterations", "2", "--images-per-class", "2"]


@pytest.mark.parametrize(
    ("network", "why"),
    [("asserts", "on images of 8 x 8: AssertionError"), ("asks", "'Tensor' object has no attribute 'nonsense'")],
)
def test_verifiers_and_judges(run: Callable[..., Ended], network: str, why: str, tmp_path: Path) -> None:
    command = [*ONE, *FAILING, *SHORT, "--output", tmp_path / "a", "--verifier", f"{network}@random"]
    assert f"verifier {network}: its forward pass fails" in one_line(run(*command)) and not (tmp_path / "a").exists()
    told = one_line(run("dataset", *command, "--images", "4"))
    assert why in told and not (tmp_path / "a").exists()
    assert run(*ONE, *SHORT, "--output", tmp_path / "b").code == 0
    judged = run("evaluate", tmp_path / "b", *PLUGIN[:2], *FAILING, *CPU, "--judge", f"{network}@random")
    assert why in one_line(judged)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("asserts", "asserts: its forward pass fails on an image of 8 x 8: AssertionError"),
        ("forgets", "forgets: no gradient reaches the image"),
        ("detaches", "detaches: no gradient reaches the image"),
    ],
)
def test_teachers(run: Callable[..., Ended], network: str, why: str, tmp_path: Path) -> None:
    command = [*FAILING, *CPU, "--models", f"{network}@random", *SHORT, "--output", tmp_path / "a"]
    assert why in one_line(run(*command)) and not (tmp_path / "a").exists()


def test_a_network_that_squeezes_a_single_image(run: Callable[..., Ended], tmp_path: Path) -> None:
    command = [*FAILING, *CPU, "--models", "squeezes@random", "--iterations", "2", "--output", tmp_path / "a"]
    for count in (1, 2):
        judged = ["--verifier", "squeezes@random", "--images-per-class", count, "--targets", "star", "--overwrite"]
        assert run(*command, *judged).code == 0


@pytest.mark.parametrize("network", ["asserts", "asks", "forgets"])
def test_students_and_their_teachers(run: Callable[..., Ended], network: str, tmp_path: Path) -> None:
    made = run("dataset", *ONE, *SHORT, "--images", "6", "--output", tmp_path / "set")
    assert made.code == 0
    command = ["distill", *PLUGIN[:2], *FAILING, *CPU, "--dataset", tmp_path / "set", "--epochs", "1"]
    command += ["--set", "schedule.batch_size=6"]
    told = one_line(run(*command, "--student", network, "--output", tmp_path / "a"))
    assert f"student: {network}: " in told and not (tmp_path / "a").exists()
    if network != "forgets":  # a teacher needs no gradient
        live = ["--student", "tiny_a", "--labels", "live", "--teacher", f"{network}@random"]
        told = one_line(run(*command, *live, "--output", tmp_path / "a"))
        assert "its forward pass fails" in told and not (tmp_path / "a").exists()


@pytest.mark.parametrize("network", ["asserts", "forgets"])
def test_networks_to_train(run: Callable[..., Ended], network: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", {"train": 6, "test": 6}, ("circle", "square", "star"), 8, 2)
    recipe = tmp_path / "r.yaml"
    schedule = "schedule: {epochs: 1, batch_size: 3}"
    recipe.write_text(f"model: {network}@random\ndata: {{path: {tmp_path / 'data'}}}\n{schedule}\n")
    told = one_line(run("train", *FAILING, *CPU, "--recipe", recipe, "--output", tmp_path / "a"))
    assert f"model: {network}@random: " in told and not (tmp_path / "a").exists()


def test_a_network_that_is_tried_stays_in_its_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    net[1].eval()
    before = net[1].running_mean.clone()
    check_reads("net", net, ModelCard("net", "test", 8, 3, (0.5,) * 3, (0.5,) * 3))
    assert [module.training for module in net] == [True, False, True, True] and torch.equal(net[1].running_mean, before)
