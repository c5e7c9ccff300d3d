"""`invert.py report`: one file from results folders, and nothing where that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ONE, TWO, tree

STEPS = ["--iterations", "4"]


@pytest.fixture
def made(run, tmp_path: Path) -> Path:
    assert run(*ONE, *STEPS, "--output", tmp_path / "a").code == 0
    return tmp_path / "a"


def test_one_run(run, made: Path) -> None:
    before, file = tree(made), made.parent / "new" / "folder" / "page.html"
    ended = run("report", made, "--output", file)
    assert (ended.code, ended.errors) == (0, []) and tree(made) == before
    assert re.fullmatch(r"3 images of 1 run, \d+\.\d MB: .*page\.html\n", ended.output)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and text.count("<figure") == 3
    assert all(f"made as {name}" in text for name in ("circle", "square", "star"))
    assert [*file.parent.iterdir()] == [file]


def test_two_runs(run, made: Path) -> None:
    other = made.parent / "b"
    assert run(*TWO, *STEPS, "--trials", "2", "--seed", "3", "--output", other).code == 0
    ended = run("report", made, other, made, "--output", made.parent / "page.html")
    assert ended.code == 0 and ended.output.startswith("9 images of 2 runs, ")
    text = (made.parent / "page.html").read_text(encoding="utf-8")
    assert text.count("<figure") == 9 and text.count('<div class="group"') == 3
    assert '<tr class="differs"><th scope="row"><code>seed</code>' in text


def test_nothing_is_overwritten_silently(run, made: Path) -> None:
    file = made.parent / "page.html"
    file.write_text("mine")
    ended = run("report", made, "--output", file)
    assert ended.code == 2 and len(ended.errors) == 1 and "exists; pass --overwrite" in ended.errors[0]
    assert file.read_text() == "mine"
    assert run("report", made, "--output", file, "--overwrite").code == 0
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_folder_that_holds_no_run(run, made: Path) -> None:
    (made.parent / "empty").mkdir()
    for folder, words in (("nowhere", "nowhere is no folder"), ("empty", "images.safetensors does not exist")):
        file = made.parent / "new" / "page.html"
        ended = run("report", made, made.parent / folder, "--output", file, "--overwrite")
        assert ended.code == 2 and len(ended.errors) == 1 and words in ended.errors[0]
        assert not file.parent.exists()


def test_damage(run, made: Path) -> None:
    (made / "per_image.jsonl").write_text("{}\n")
    ended = run("report", made, "--output", made.parent / "page.html")
    assert ended.code == 2 and len(ended.errors) == 1 and "per_image.jsonl is damaged" in ended.errors[0]
    assert not (made.parent / "page.html").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("a/recipe.yaml", "let it end in .html"),
        ("a/summary.json/page.html", "is a file"),
        ("folder.html", "is a folder"),
    ],
)
def test_an_output_that_cannot_be(run, made: Path, output: str, words: str) -> None:
    (made.parent / "folder.html").mkdir()
    before = tree(made)
    ended = run("report", made, "--output", made.parent / output, "--overwrite")
    assert ended.code == 2 and len(ended.errors) == 1 and words in ended.errors[0]
    assert tree(made) == before


def test_output_is_required(run, made: Path) -> None:
    ended = run("report", made)
    assert ended.code == 2 and "--output" in ended.errors[0]


def test_under_torchrun(run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = run("report", made, "--output", made.parent / "page.html")
    assert ended.code == 2 and "one process" in " ".join(ended.errors)
    assert not (made.parent / "page.html").exists()
