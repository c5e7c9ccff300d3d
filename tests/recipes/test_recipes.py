"""Every recipe parses, says where it comes from, and takes two steps with small untrained networks."""

from __future__ import annotations

import configparser
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ensemble import cli
from ensemble.config.yaml_files import load_yaml
from ensemble.recipe import Recipe, default_recipe, parse_recipe
from ensemble.runs.recipes import assembled, read_recipe
from models import model_card

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECTED = {
    "begin_eight_teachers",
    "bn_only",
    "classification_only",
    "clear",
    "edge_popup",
    "imagenet",
    "imagenet_best",
    "imagenette",
    "nvlabs_cifar10",
    "nvlabs_setting0",
    "nvlabs_setting0_adaptive",
    "nvlabs_setting1",
    "nvlabs_setting2",
    "pixels",
    "quickstart",
    "rafi_cohen_grid",
    "rafi_cohen_resnet50",
    "summed",
    "varied",
}
each_recipe = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_an_installation_brings_all_recipes() -> None:
    setup = configparser.ConfigParser()
    setup.read(FOLDER.parent / "setup.cfg")
    brought = {}
    for place, patterns in setup["options.data_files"].items():
        for pattern in patterns.split():
            brought |= {path: place for path in FOLDER.parent.glob(pattern)}
    there = {path for path in FOLDER.rglob("*") if path.is_file()}
    assert brought.keys() == there
    for path, place in brought.items():
        assert place == f"share/ensemble-inversion/{path.parent.relative_to(FOLDER.parent)}", path


def read(name: str) -> Recipe:
    return parse_recipe(load_yaml(FOLDER / f"{name}.yaml"))


def models_of(recipe: Recipe) -> list[str]:
    return [entry.model for entry in recipe.teachers] + list(recipe.verifiers)


def stand_ins(recipe: Recipe) -> list[str]:
    """Options that swap in untrained networks and a tiny batch; everything else stays the recipe's."""
    if model_card(recipe.teachers[0].model).num_classes == 10:
        teachers = ["resnet20_cifar@random", "vgg16_bn_slim_cifar@random"]
        verifier = "mobilenetv2_slim_cifar@random"
        sizes = ["image.batch_size=4"]
    else:
        teachers, verifier = ["resnet18@random"], "resnet18@random"
        sizes = ["image.batch_size=2", "image.size=64"]
        # a view larger than the image would be enlarged, where the recipe reduces or keeps it
        sizes += [
            f"stages[{i}].size={64 * stage.size // (recipe.image.size or 224)}"
            for i, stage in enumerate(recipe.stages)
            if stage.size is not None
        ]
    line = ["--models", *teachers[: len(recipe.teachers)], "--device", "cpu", "--precision", "fp32"]
    line += ["--verifier", verifier] if recipe.verifiers else []
    if recipe.teaching < len(recipe.teachers):
        sizes.append(f"teachers=[{{model: {teachers[0]}}}, {{model: {teachers[0]}, student: true}}]")
    return line + [part for size in sizes for part in ("--set", size)]


def test_all_recipes_are_here() -> None:
    assert {path.stem for path in FILES} == EXPECTED


@each_recipe
def test_header_says_source_and_deviations(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    for word in ("Source:", "Reproduces:", "Deviations:"):
        assert sum(line.startswith(f"# {word}") for line in header) == 1, word
    assert max(len(line) for line in lines) <= 110


@each_recipe
def test_models_are_known_with_their_weights(path: Path) -> None:
    for name in models_of(read(path.stem)):
        tag = name.partition("@")[2]
        card = model_card(name)
        assert not tag or tag in card.weights, f"{name}: known weights are {list(card.weights)}"


@each_recipe
def test_verifiers_are_no_teachers(path: Path) -> None:
    recipe = read(path.stem)
    assert not {entry.model for entry in recipe.teachers} & set(recipe.verifiers)


@each_recipe
def test_takes_two_steps(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read(path.stem)
    line = ["--recipe", str(path), *stand_ins(recipe), "--iterations", "2", "--output", str(tmp_path / "out")]
    assert cli.main(line) == 0, capsys.readouterr().err
    written = parse_recipe(load_yaml(tmp_path / "out" / "recipe.yaml"))
    assert written.objectives == recipe.objectives
    assert written.iterations == 2
    saved = load_file(tmp_path / "out" / "images.safetensors")
    expected = 4 if saved["images"].shape[-1] == 32 else 2
    assert saved["images"].shape[:2] == (expected, 3)
    assert saved["images"].isfinite().all() and saved["images"].min() >= 0 and saved["images"].max() <= 1


def test_the_written_recipe_gives_the_same_images(tmp_path: Path) -> None:
    line = ["--recipe", str(FOLDER / "quickstart.yaml"), *stand_ins(read("quickstart")), "--iterations", "3"]
    again = ["--recipe", str(tmp_path / "first" / "recipe.yaml")]
    assert cli.main([*line, "--output", str(tmp_path / "first")]) == 0
    assert cli.main([*again, "--output", str(tmp_path / "same")]) == 0
    assert cli.main([*again, "--seed", "1", "--output", str(tmp_path / "other")]) == 0
    first, same, other = ((tmp_path / run / "images.safetensors").read_bytes() for run in ("first", "same", "other"))
    assert first == same
    assert first != other


def test_quickstart_writes_out_every_field() -> None:
    """It is the documented example, so a field that recipes gain has to appear in it."""
    text = (FOLDER / "quickstart.yaml").read_text(encoding="utf-8")
    written = set(re.findall(r"^[ -]*(\w+):", text, re.MULTILINE))
    assert set(field_names(read("quickstart"))) <= written


def field_names(value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        for item in value:
            yield from field_names(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield field.name
            yield from field_names(getattr(value, field.name))


def test_quickstart_states_the_defaults() -> None:
    """It writes out the defaults as they are: without those lines the recipe is the same."""
    quickstart = read("quickstart")
    shortened = {
        "teachers": [{"model": entry.model} for entry in quickstart.teachers],
        "images_per_class": 10,
        "verifiers": ["mobilenetv2_slim_cifar"],
        "ensemble": {"acting": "turn"},
        "image": {"start": {"kind": "noise", "amplitude_spread": 0.5, "colour_spread": 0.5}},
        "stages": [{"iterations": 186, "jitter": 4, "jitter_per_image": True, "flip": 0.5, "flip_per_image": True}],
    }
    assert parse_recipe(shortened) == quickstart


def test_variants_differ_from_quickstart_only_in_what_they_are_about() -> None:
    quickstart = read("quickstart")
    about = {
        "pixels": {"image"},
        "summed": {"ensemble", "stages", "optimizer"},
        "bn_only": {"objectives", "verifiers"},
        "classification_only": {"objectives"},
        "varied": {"objectives"},
    }
    for name, fields in about.items():
        other = read(name)
        names = [field.name for field in dataclasses.fields(Recipe)]
        assert {n for n in names if getattr(other, n) != getattr(quickstart, n)} == fields, name
    assert read("summed").iterations * len(quickstart.teachers) == quickstart.iterations


def test_large_networks_take_the_settings_of_the_recipe_imagenet() -> None:
    plain, recipe = parse_recipe(default_recipe(["resnet18", "resnet34"], 224)), read("imagenet")
    for name in ("objectives", "stages", "optimizer", "prior_space"):
        assert getattr(plain, name) == getattr(recipe, name), name
    assert plain.ensemble.acting == "all"


def test_small_networks_take_the_settings_of_the_quickstart() -> None:
    """But for the turns, since ranks work side by side, and the steps, which all teachers take together."""
    recipe = read("quickstart")
    plain = parse_recipe(default_recipe([entry.model for entry in recipe.teachers], 32))
    for name in ("image", "objectives", "optimizer", "prior_space"):
        assert getattr(plain, name) == getattr(recipe, name), name
    (stage,), (expected,) = plain.stages, recipe.stages
    assert dataclasses.replace(stage, iterations=expected.iterations) == expected
    assert (plain.ensemble.acting, recipe.ensemble.acting, stage.iterations) == ("all", "turn", 150)


def test_fewer_steps_shorten_what_the_optimiser_waits_for() -> None:
    """The source's share of the steps: 5 and 12 %."""
    optimizer = read("rafi_cohen_resnet50").with_iterations(600).optimizer
    assert (optimizer.plateau_patience, optimizer.early_stopping) == (30, 72)
    assert read("rafi_cohen_resnet50").with_iterations(40000).optimizer == read("rafi_cohen_resnet50").optimizer


@pytest.mark.parametrize(
    ("override", "waits"),
    [
        ("optimizer.plateau_patience=100", (100, 72)),
        ("optimizer.early_stopping=500", (30, 500)),
        ("optimizer={plateau_patience: 100, schedule: plateau, early_stopping: 500}", (100, 500)),
    ],
)
def test_fewer_steps_leave_the_waits_that_are_set(override: str, waits: tuple[int, int]) -> None:
    optimizer = assembled(read_recipe("rafi_cohen_resnet50"), {"iterations": 600}, [override]).optimizer
    assert (optimizer.plateau_patience, optimizer.early_stopping) == waits


def test_recipes_of_one_source_differ_in_what_they_are_about() -> None:
    about = {
        ("imagenet", "imagenette"): {"targets", "images_per_class"},
        ("nvlabs_setting0", "nvlabs_setting0_adaptive"): {"teachers", "objectives", "optimizer", "runtime"},
        ("rafi_cohen_resnet50", "rafi_cohen_grid"): {
            *("image", "targets", "images_per_class", "seed", "objectives", "verifiers"),
        },
    }
    for (one, other), fields in about.items():
        first, second = read(one), read(other)
        names = [field.name for field in dataclasses.fields(Recipe)]
        assert {n for n in names if getattr(first, n) != getattr(second, n)} == fields, other


def test_nvlabs_batches() -> None:
    """84 images are 42 classes twice, as the script has it."""
    for name in ("nvlabs_setting0", "nvlabs_setting0_adaptive", "nvlabs_setting1"):
        recipe = read(name)
        assert len(set(recipe.targets)) == 42 and recipe.images_per_class * len(recipe.targets) == 84
        assert recipe.targets == read("nvlabs_setting2").targets
    assert read("nvlabs_setting2").image.batch_size == 152
    assert read("nvlabs_cifar10").image.batch_size == 256


def test_waits_that_are_given_count_in_the_steps_of_the_run() -> None:
    """A recipe of 40 steps made a tenth as long, or ten times: a warm-up beside that is meant as it is written."""
    recipe = {"teachers": [{"model": "resnet20_cifar"}], "stages": [{"iterations": 40}], "optimizer": {"warmup": 20}}

    def warmup(total: int, *overrides: str, **fields: object) -> int:
        made = assembled(recipe, {**fields, "iterations": total}, overrides)
        assert made.iterations == total
        return made.optimizer.warmup

    assert (warmup(4), warmup(400)) == (2, 20)
    assert warmup(4, optimizer={"warmup": 3}) == warmup(4, "optimizer.warmup=3") == 3
    assert warmup(400, optimizer={"warmup": 100}) == warmup(400, "optimizer.warmup=100") == 100
    assert warmup(4, stages=[{"iterations": 40}]) == warmup(4, "stages=[{iterations: 40}]") == 2  # a whole recipe
    with pytest.raises(ValueError, match="warmup: 100 steps are more than a stage's 40"):
        warmup(40, "optimizer.warmup=100")
