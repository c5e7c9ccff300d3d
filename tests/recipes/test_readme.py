"""The README shows the quickstart as it is."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_readme_shows_the_whole_quickstart_recipe():
    assert (ROOT / "recipes" / "quickstart.yaml").read_text().rstrip() in (ROOT / "README.md").read_text()
