"""Spaces and distillations that are shipped: they are read, say where they come from, and fit what they are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ensemble.config.mistakes import ConfigError
from ensemble.config.yaml_files import load_yaml
from ensemble.recipe import Recipe, parse_recipe
from ensemble.runs.recipes import load_recipe
from ensemble.search.metrics.inception import Inception
from ensemble.search.sampling import grid_of
from ensemble.search.settings import Settings
from ensemble.search.space import check_space, read_space
from ensemble.training.distillation import DistillationRecipe, parse_distillation_recipe
from ensemble.training.lessons import Hard, Live
from models import model_card, parse_spec

FOLDER = Path(__file__).parents[2] / "recipes"
SPACES = {"imagenet": "imagenet", "loss_weights": "quickstart", "quickstart": "quickstart"}
SPACES |= {"rafi_cohen_grid": "rafi_cohen_grid"}
"""Spaces, and the recipes that they are for."""
STUDENTS = [
    "cifar10",
    "cifar10_long",
    "cifar10_pruned",
    "imagenet",
    "imagenet_pruned",
    "nvlabs_cifar10",
    "rafi_cohen_resnet50",
]
OURS = ["search/quickstart", "distillation/cifar10", "distillation/cifar10_long"]
"""Nobody else's experiments."""


def base(name: str) -> Recipe:
    return parse_recipe(load_yaml(FOLDER / f"{name}.yaml"))


def student(name: str) -> DistillationRecipe:
    return parse_distillation_recipe(load_yaml(FOLDER / f"distillation/{name}.yaml"))


def test_all_are_here() -> None:
    assert {file.stem for file in (FOLDER / "search").glob("*.yaml")} == set(SPACES)
    assert {file.stem for file in (FOLDER / "distillation").glob("*.yaml")} == set(STUDENTS)


@pytest.mark.parametrize("name", [f"search/{name}" for name in SPACES] + [f"distillation/{name}" for name in STUDENTS])
def test_the_header_says_source_and_deviations(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert max(len(line) for line in lines) <= 120
    if name not in OURS:
        header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
        for word in ("Source:", "Reproduces:", "Deviations:"):
            assert sum(line.startswith(f"# {word}") for line in header) == 1, word


@pytest.mark.parametrize("name", SPACES)
def test_a_space_fits_its_recipe(name: str) -> None:
    """Each end and each choice makes a recipe."""
    space = read_space(FOLDER / f"search/{name}.yaml")
    found = check_space(space, base(SPACES[name]), name)
    assert len(found) == sum(len(list(values.probes)) for values in space.fields.values())


@pytest.mark.parametrize(("name", "points"), [("loss_weights", 18), ("rafi_cohen_grid", 12)])
def test_grids_have_as_many_points_as_they_say(name: str, points: int) -> None:
    """And the recipe as it is stands among them: what the grid is around."""
    recipe, space = base(SPACES[name]), read_space(FOLDER / f"search/{name}.yaml")
    grid = grid_of(Settings(recipe, space, Inception(), "judge", None, 1, "grid", "none"))
    assert len(grid) == points and space.values_of(recipe) in grid


def test_the_published_grid() -> None:
    """a_f, and a_tv divided by the batch of 50, of 20 classes."""
    grid, recipe = load_yaml(FOLDER / "search/rafi_cohen_grid.yaml"), base("rafi_cohen_grid")
    assert grid["objectives[1].weight"] == [5e-3, 1e-2] and grid["optimizer.lr"] == [0.2, 0.05]
    assert [50 * weight for weight in grid["objectives[2].weight"]] == pytest.approx([5e-4, 1e-3, 5e-3])
    assert recipe.image.batch_size == 50 and len(recipe.targets) == 20 and recipe.seed == 42


@pytest.mark.parametrize("name", STUDENTS)
def test_students_and_their_teachers_are_known(name: str) -> None:
    recipe = student(name)
    card = model_card(recipe.student)
    assert recipe.prune is not None or parse_spec(recipe.student).weights == "random"
    if isinstance(recipe.lesson, Live):
        assert all(model_card(teacher).num_classes == card.num_classes for teacher in recipe.lesson.teachers)
    assert not recipe.prune or recipe.lesson == Live(teachers=(recipe.student,))


def test_published_students() -> None:
    """Hard labels without augmentation; and as many steps as 200 epochs of 400."""
    hard, soft = student("rafi_cohen_resnet50"), student("nvlabs_cifar10")
    assert isinstance(hard.lesson, Hard) and not hard.augmentation.flip and not hard.augmentation.crop_padding
    assert soft.schedule.steps_per_epoch(1000 * 256) * soft.schedule.epochs == 200 * 400


def test_a_recipe_of_ones_own_may_extend_a_shipped_one(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: quickstart\nseed: 7\n")
    shipped = load_recipe("quickstart")
    assert load_recipe(mine) == replace(shipped, seed=7)
    mine.write_text("extends: quikstart\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: extends: .*did you mean 'quickstart'"):
        load_recipe(mine)
    (tmp_path / "quickstart").write_text("teachers: [{model: resnet20_cifar}]\n")  # a file beside it goes first
    mine.write_text("extends: quickstart\n")
    assert len(load_recipe(mine).teachers) == 1
