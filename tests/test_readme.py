"""README is short, its links lead somewhere, and what it prints works as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DEMOS = sorted((ROOT / "demos").glob("*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += DEMOS


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of a language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, link


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs_as_printed(number: int, tmp_path: Path) -> None:
    code = blocks("python")[number]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_a_prior_and_images_take_six_lines() -> None:
    (script,) = [code for code in blocks("python") if "nets = " in code]
    assert len([line for line in script.splitlines() if line.strip()]) <= 6


@pytest.mark.parametrize("page", [ROOT / "README.md", *DEMOS], ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_understood(page: Path) -> None:
    """Each line's options are known to its command."""
    from ensemble.applications._options import Parser
    from ensemble.cli import commands

    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in blocks("", text) for line in block.splitlines() if "invert.py" in line]
    assert lines
    for line in lines:
        words = shlex.split(line.split("invert.py", 1)[1])
        named = bool(words) and words[0] in commands()
        application = import_module(f"ensemble.applications.{words[0] if named else 'invert'}")
        parser = Parser("invert.py", "")
        application.arguments(parser)
        parser.parse_args(words[1:] if named else words)
