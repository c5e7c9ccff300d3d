"""invert.py search: points, workers, ends and mistakes, by tiny networks and a metric that takes no time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch
from conftest import ROOT, Ended, end, environment, start, tree
from PIL import Image
from quick import quick

from ensemble.applications.search import space_file
from ensemble.config.yaml_files import load_yaml
from ensemble.recipe import parse_recipe
from ensemble.runs.recipes import load_recipe
from ensemble.search.folder import SearchFolder
from ensemble.search.images import made, seed_at
from ensemble.search.settings import Settings, parse_metric
from ensemble.search.space import point_of, read_space
from models import create_model, load_plugin

HERE = Path(__file__).parent
PLUGINS = ["--plugin", HERE / "tiny.py", "--plugin", HERE / "brightness.py"]
RECIPE = """
teachers: [{model: tiny_a@random}]
stages: [{iterations: 2}]
best_every: 0
runtime: {device: cpu, precision: fp32}
"""
SPACE = """
image.start.scale: {low: 0.1, high: 3, log: true}
image.parameterization.decay: {low: 0.5, high: 1.5}
stages[0].iterations: {low: 1, high: 3, int: true}
optimizer.schedule: [cosine, constant]
"""

Run = Callable[..., Ended]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a search in this process take no time."""
    monkeypatch.setattr("ensemble.search.value.made", quick)


@pytest.fixture
def line(tmp_path: Path) -> Callable[..., list[Any]]:
    """A command line, for a folder of this test's."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "space.yaml").write_text(SPACE)

    def words(folder: str, *more: object, trials: int = 6, metric: str = "brightness") -> list[Any]:
        files = ["--recipe", tmp_path / "recipe.yaml", "--space", tmp_path / "space.yaml"]
        how = ["--trials", trials, "--metric", metric, "--judge", "tiny_plain@random", "--pruner", "none"]
        return ["search", *PLUGINS, *files, *how, "--confirm", 0, "--output", tmp_path / folder, *more]

    return words


@pytest.mark.parametrize(
    ("more", "metric", "message"),
    [
        (["--data", "nowhere"], "distance", "nowhere"),
        (["--storage", "nonsense"], "brightness", "give a database that can be reached"),
    ],
)
def test_what_cannot_be_had_is_told_before_anything_is_written(
    more: list[str], metric: str, message: str, fast: None, run: Run, line: Callable[..., list[Any]], tmp_path: Path
) -> None:
    assert run(*line("out")).code == 0
    before = tree(tmp_path / "out")
    again = [] if more[0] == "--storage" else ["--overwrite"]
    ended = run(*line("new", *more, metric=metric))
    assert ended.code == 2 and message in ended.errors[-1] and not (tmp_path / "new").exists()
    ended = run(*line("out", *more, *again, metric=metric))
    assert ended.code == 2 and tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("classes", "message"), [(("dot", "line"), "has no class 'dot'"), (("circle", "star"), "1 of the 3 classes")]
)
def test_real_images_of_other_classes_are_told_before_anything_is_written(
    classes: tuple[str, ...], message: str, run: Run, line: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for name in classes:
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "train" / name / "0.png")
    ended = run(*line("out", "--data", tmp_path / "data", metric="distance"))
    assert ended.code == 2 and len(ended.errors) == 1 and message in ended.errors[0], ended.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sea?x=1", "a%20b#c ü", "{x}"])
def test_a_folder_of_any_name(name: str, fast: None, run: Run, line: Callable[..., list[Any]], tmp_path: Path) -> None:
    assert run(*line(name, trials=2)).code == 0
    assert (tmp_path / name / "study.db").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "space.yaml", name}
    ended = run(*line(name, "--resume", trials=3))
    assert ended.code == 0 and len(rows(tmp_path / name)) == 3


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "points.jsonl").read_text().splitlines()]


def points(folder: Path) -> list[dict[str, Any]]:
    """Without the time that they took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


def test_points_are_recipes_and_the_first_is_the_recipe_as_it_is(run: Run, line: Any, tmp_path: Path) -> None:
    assert run(*line("out", "--seeds", 2, trials=3)).code == 0
    found = rows(tmp_path / "out")
    assert [row["point"] for row in found] == list(range(3)) and {row["state"] for row in found} == {"complete"}
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert found[0]["values"] == {
        "image.start.scale": recipe.image.start.scale,  # type: ignore[attr-defined]
        "image.parameterization.decay": 1.0,
        "stages[0].iterations": 2,
        "optimizer.schedule": "cosine",
    }
    assert len({json.dumps(row["values"]) for row in found}) == 3
    for row in found[1:2]:  # run again apart from any study
        again = point_of(recipe, row["values"])
        values = [float(made(again, seed_at(recipe, place))[0].double().mean()) for place in (0, 1)]
        assert row["seeds"] == values and row["mean"] == pytest.approx(mean(values))


@pytest.mark.usefixtures("fast")
def test_the_best_recipe_loads_and_the_files_agree(run: Run, line: Any, tmp_path: Path) -> None:
    ended = run(*line("out", "--confirm", 2))
    folder = tmp_path / "out"
    found, summary = rows(folder), json.loads((folder / "summary.json").read_text())
    best = max(found, key=lambda row: row["mean"])
    assert summary["best"] == best and best["point"] > 0 and summary["states"] == {"complete": 6}
    recipe = parse_recipe(load_yaml(folder / "best.yaml"))
    assert recipe == point_of(load_recipe(tmp_path / "recipe.yaml"), best["values"])
    assert f"# Point {best['point']} of a search" in (folder / "best.yaml").read_text()
    said = summary["confirmation"]
    assert len(said["best"]) == 2 and not {*said["best"], *said["baseline"]} & {
        v for row in found for v in row["seeds"]
    }
    assert said["verdict"] in summary["said"][0] and summary["said"][0] in ended.output
    assert summary["said"][0] in (folder / "table.md").read_text()
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert run("--plugin", HERE / "tiny.py", "--recipe", folder / "best.yaml", "--output", tmp_path / "made").code == 0


@pytest.mark.usefixtures("fast")
def test_a_resumed_search_equals_an_uninterrupted_one(
    run: Run, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*line("whole", trials=12)).code == 0  # the last ones are drawn by what is known
    assert run(*line("longer", trials=4)).code == 0
    assert run(*line("longer", "--resume", trials=12)).code == 0
    assert points(tmp_path / "longer") == points(tmp_path / "whole")
    monkeypatch.setenv("STRIKE", "SIGTERM:8")
    monkeypatch.setenv("STRUCK", str(tmp_path / "struck"))
    ended = run(*line("ended", trials=12))
    assert ended.code == 143 and ended.errors == [
        "invert.py: interrupted by SIGTERM; the same command with --resume goes on from the last whole point"
    ]
    before = points(tmp_path / "ended")
    assert [row["state"] for row in before] == ["complete"] * 3
    assert not (tmp_path / "ended" / "summary.json").exists()
    assert run(*line("ended", "--resume", trials=12)).code == 0
    assert points(tmp_path / "ended") == points(tmp_path / "whole")
    assert not (tmp_path / "ended" / "workers").exists()


@pytest.mark.usefixtures("fast")
def test_a_killed_worker_is_missed_by_nobody(run: Run, line: Any, tmp_path: Path) -> None:
    assert run(*line("whole")).code == 0
    strike = {"STRIKE": "SIGKILL:5", "STRUCK": str(tmp_path / "struck")}
    assert end(start(*line("killed"), "--plugin", HERE / "quick.py", **strike)).code == -9
    assert run(*line("killed", "--resume")).code == 0
    assert points(tmp_path / "killed") == points(tmp_path / "whole")


def test_two_processes_do_each_point_once(line: Any, tmp_path: Path) -> None:
    words = line("both", "--resume", "--confirm", 2, trials=40, metric="{kind: brightness, pause: 0.2}")
    both = [start(*words, "--plugin", HERE / "quick.py", MEASURED=str(tmp_path / "measured")) for _ in range(2)]
    ends = [end(process) for process in both]
    assert [ended.code for ended in ends] == [0, 0], [ended.errors for ended in ends]
    calls = [text.split() for text in (tmp_path / "measured").read_text().splitlines()]
    found = rows(tmp_path / "both")
    assert [row["point"] for row in found] == list(range(40)) and {row["state"] for row in found} == {"complete"}
    assert len({pid for pid, _, _ in calls}) == 2
    assert len(calls) == 40 * 2 + 2 * 2 and len({(seed, value) for _, seed, value in calls}) == len(calls)
    assert len({json.dumps(row["values"]) for row in found}) == 40


@pytest.mark.usefixtures("fast")
def test_a_database_elsewhere_is_joined_by_the_same_command(run: Run, line: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    assert run(*line("here", "--storage", url, trials=3)).code == 0
    assert run(*line("here", "--storage", url, trials=4)).code == 0
    assert run(*line("there", "--storage", url, trials=5)).code == 0
    assert points(tmp_path / "there")[:4] == points(tmp_path / "here") and len(points(tmp_path / "there")) == 5
    assert not (tmp_path / "here" / "study.db").exists()
    assert run(*line("other", "--storage", url, "--set", "seed=5", trials=1)).code == 0  # another study
    assert points(tmp_path / "other")[0]["seeds"] != points(tmp_path / "here")[0]["seeds"]


def test_held_out_images_are_made_once_for_all_workers(
    run: Run, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.search.images.HELD_OUT_IMAGES", 3)
    student = "{kind: student, model: tiny_b@random, steps: 2}"
    how = ["--storage", f"sqlite:///{tmp_path / 'shared.db'}", "--seeds", 1]
    assert run(*line("here", *how, metric=student, trials=1)).code == 0
    made_there = (tmp_path / "here" / "held_out.safetensors").read_bytes()
    ended = run(*line("there", *how, metric=student, trials=2))
    assert ended.code == 2 and len(ended.errors) == 1
    assert "lacks the held-out images that the study has; copy held_out.safetensors" in ended.errors[0]
    shutil.copy(tmp_path / "here" / "held_out.safetensors", tmp_path / "there")
    assert run(*line("there", *how, metric=student, trials=2)).code == 0
    assert (tmp_path / "there" / "held_out.safetensors").read_bytes() == made_there
    seeds = [row["seeds"] for row in points(tmp_path / "there")]
    assert len(seeds) == 2 and all(0 <= value <= 1 for (value,) in seeds)
    (tmp_path / "there" / "held_out.safetensors").write_bytes(made_there[:-1] + b"\x01")
    ended = run(*line("there", *how, metric=student, trials=3))
    assert ended.code == 2 and "holds other held-out images than the study has" in ended.errors[0]
    (tmp_path / "there" / "held_out.safetensors").write_bytes(b"damaged")
    assert "cannot be read" in run(*line("there", *how, metric=student, trials=3)).errors[0]


@pytest.mark.usefixtures("fast")
def test_bad_points_are_broken_off(run: Run, line: Any, tmp_path: Path) -> None:
    assert run(*line("out", "--pruner", "median", "--sampler", "random", trials=14)).code == 0
    found = rows(tmp_path / "out")
    pruned = [row for row in found if row["state"] == "pruned"]
    assert pruned and found[0]["state"] == "complete"
    for row in pruned:
        earlier = [one["seeds"][0] for one in found[: row["point"]] if one["state"] == "complete"]
        assert len(row["seeds"]) == 1 and row["seeds"][0] < median(earlier)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["best"]["state"] == "complete"
    # Optuna draws a trial's bracket by the study's name, which follows the recipe; of few trials none may be broken off
    assert run(*line("hyper", "--pruner", "hyperband", "--seeds", 3, trials=20)).code == 0
    assert any(1 <= len(row["seeds"]) < 3 for row in rows(tmp_path / "hyper"))


def test_hyperband_breaks_off_the_same_points_where_it_goes_on(
    run: Run, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bracket is a point's and not a trial's, of which a point that was left and done again has two."""
    how: list[Any] = ["--pruner", "hyperband", "--seeds", 3, "--sampler", "random"]
    calls = 0

    def struck(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return quick(*args)

    monkeypatch.setattr("ensemble.search.value.made", struck)
    assert run(*line("ended", *how, trials=10)).code == 130
    assert run(*line("ended", *how, "--resume", trials=10)).code == 0
    assert run(*line("whole", *how, trials=10)).code == 0
    found = points(tmp_path / "whole")
    assert points(tmp_path / "ended") == found and {len(row["seeds"]) for row in found} == {1, 3}


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("whose", ["judge", "teacher", "choice"])
def test_files_that_changed_are_told(whose: str, run: Run, line: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    load_plugin(HERE / "tiny.py")
    net = create_model("tiny_plain@random" if whose == "judge" else "tiny_a@random")[0]
    torch.save(net.state_dict(), file)
    if whose == "choice":
        (tmp_path / "space.yaml").write_text(f"'teachers[0].model': [tiny_a@random, 'tiny_a@{file}']")
    how = {
        "judge": ["--judge", f"tiny_plain@{file}"],
        "teacher": ["--set", f"teachers[0].model=tiny_a@{file}"],
        "choice": [],
    }[whose]
    assert run(*line("out", *how, trials=1)).code == 0
    before = points(tmp_path / "out")
    torch.save({key: value + 1 for key, value in net.state_dict().items()}, file)
    ended = run(*line("out", *how, "--resume", trials=2))
    assert ended.code == 2 and len(ended.errors) == 1
    assert f"the contents of {file} are not those that the search began with" in ended.errors[0]
    assert points(tmp_path / "out") == before and (tmp_path / "out" / "summary.json").exists()


@pytest.mark.usefixtures("fast")
def test_a_recipe_outside_of_its_space_is_point_0(run: Run, line: Any, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("image.parameterization.decay: {low: 1.2, high: 1.5}")
    assert run(*line("out", trials=4)).code == 0
    values = [row["values"]["image.parameterization.decay"] for row in rows(tmp_path / "out")]
    assert values[0] == 1.0 and all(1.2 <= value <= 1.5 for value in values[1:])


def test_a_choice_may_say_the_recipes_number_in_another_way() -> None:
    space, recipe = read_space(space_file("loss_weights")), load_recipe("quickstart")
    own = space.encoded(space.values_of(recipe))
    assert own["objectives[1].weight"] == "1" and own["objectives[2].weight"] == "0.001"


@pytest.mark.usefixtures("fast")
def test_the_grid_is_gone_through_once(run: Run, line: Any, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "image.parameterization.decay: {low: 0.5, high: 1.0, step: 0.25}\noptimizer.betas: [[0.5, 0.9], [0.9, 0.99]]"
    )
    assert run(*line("out", "--sampler", "grid", trials=7)).code == 0
    values = [[*row["values"].values()] for row in rows(tmp_path / "out")[1:]]
    assert sorted(values) == [[decay, betas] for decay in (0.5, 0.75, 1.0) for betas in ([0.5, 0.9], [0.9, 0.99])]
    ended = run(*line("more", "--sampler", "grid", trials=8))
    assert ended.code == 2 and "are 7 points" in ended.errors[0]


@pytest.mark.usefixtures("fast")
def test_what_a_point_cannot_be_is_told_and_left(run: Run, line: Any, tmp_path: Path) -> None:
    """Each value alone is fine; a warm-up that is longer than the stage is not."""
    (tmp_path / "space.yaml").write_text("optimizer.warmup: [0, 2]\nstages[0].iterations: [1, 2]")
    assert run(*line("out", "--sampler", "grid", trials=5)).code == 0
    failed = [row for row in rows(tmp_path / "out") if row["state"] == "failed"]
    assert [row["values"] for row in failed] == [{"optimizer.warmup": 2, "stages[0].iterations": 1}]
    assert "warmup" in failed[0]["reason"]


def test_a_recipe_that_fails_ends_the_search(run: Run, line: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("tiny_a", "tiny_inf"))
    ended = run(*line("out"))
    assert ended.code == 2 and len(ended.errors) == 1 and "point 0, the recipe as it is" in ended.errors[0]


MISTAKES = [
    ("image.start.scael: {low: 1, high: 2}", "scael: unknown key; did you mean 'scale'?"),
    ("optimzer.lr: {low: 1, high: 2}", "optimzer: unknown key; did you mean 'optimizer'?"),
    ("objectives[7].weight: {low: 1, high: 2}", "objectives[7].weight: objectives has 3 entries"),
    ("optimizer.lr: {low: 2, high: 1}", "optimizer.lr.low: 2 is not below high, 1"),
    ("optimizer.lr: {low: 0, high: 1, log: true}", "with `log: true` it must be above 0, and it is 0"),
    ("optimizer.lr: {low: 1, high: 2, log: true, step: 1}", "step: it does not go with `log: true`"),
    ("optimizer.lr: {low: 0, high: 1, step: 0.3}", "is no multiple of it"),
    ("stages[0].iterations: {low: 1.5, high: 3, int: true}", "must be whole numbers"),
    ("stages[0].iterations: {low: 1, high: 3}", "stages[0].iterations: expected an integer, got 1.0"),
    ("optimizer.lr: {low: 1, hihg: 2}", "optimizer.lr.hihg: unknown key; did you mean 'high'?"),
    ("optimizer.lr: {low: -1, high: 1}", "optimizer.lr: must be positive, got -1.0"),
    ("ensemble.acting: [all, trun]", "did you mean 'turn'?"),
    ("optimizer.schedule: [cosine]", "a list of at least two values, all different"),
    ("optimizer.lr: [1, 1.0]", "a list of at least two values, all different"),
    ("optimizer.schedule: cosine", "expected {low: .., high: ..} or a list of values"),
    ("best_every: [1, 2026-01-01]", "is no value of a recipe's"),
    ("'optimizer.lr=3': [1, 2]", "no path of a field"),
    ("seed: [1, 2]", "all points are made from the same seeds"),
    ("stages[0].jitter: {low: 0, high: 8, int: true}", "jitter 8 must be smaller than the view's 8 pixels"),
    ("{}", "it names no field"),
    ("verifiers: [[tiny_b@random], []]", "a search has a judge and no verifiers"),
    (
        "optimizer.lr: {low: 0.1, high: 0.2}\noptimizer: [{kind: adam}, {kind: nadam}]",
        "optimizer.lr is a part of optimizer, which is searched as a whole",
    ),
    (
        "runtime.device: [cpu, [cpu, cpu]]",
        "space.yaml: runtime.device: a list is for ranks",
    ),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_mistakes_in_the_space(run: Run, line: Any, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    ended = run(*line("out"))
    assert ended.code == 2 and expected in "\n".join(ended.errors)
    assert "space.yaml: " in "\n".join(ended.errors) and not (tmp_path / "out").exists()


def test_a_field_is_searched_beside_its_kind_in_any_order() -> None:
    recipe = parse_recipe({"teachers": [{"model": "resnet20_cifar"}]})
    for names in (("optimizer.kind", "optimizer.lr"), ("optimizer.lr", "optimizer.kind")):
        point = point_of(recipe, {name: {"optimizer.kind": "nadam", "optimizer.lr": 0.3}[name] for name in names})
        assert (point.optimizer.kind, point.optimizer.lr) == ("nadam", 0.3)


def test_a_grid_of_too_many_points(run: Run, line: Any, tmp_path: Path) -> None:
    step = "{low: 0.5, high: 1.5, step: 0.001}"
    (tmp_path / "space.yaml").write_text(f"image.parameterization.decay: {step}\nimage.start.scale: {step}")
    ended = run(*line("out", "--sampler", "grid"))
    assert ended.code == 2 and "1002001 points are more than 100000" in ended.errors[0]


@pytest.mark.usefixtures("fast")
def test_a_network_that_fails_fails_its_point_alone(
    run: Run, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recipe: Any, seed: int) -> Any:
        if recipe.optimizer.schedule == "constant":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nat length")
        return quick(recipe, seed)

    monkeypatch.setattr("ensemble.search.value.made", fails)
    assert run(*line("out")).code == 0
    failed = [row for row in rows(tmp_path / "out") if row["state"] == "failed"]
    assert failed and len(failed) < 6
    assert {row["reason"] for row in failed} == {"RuntimeError: mat1 and mat2 shapes cannot be multiplied"}


@pytest.mark.usefixtures("fast")
def test_another_database_does_not_take_a_searchs_folder(run: Run, line: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    for more in ([], ["--storage", url]):
        assert run(*line("out", *more)).code == 0
        before = tree(tmp_path / "out")
        ended = run(*line("out", "--storage", f"sqlite:///{tmp_path / 'mistyped.db'}", trials=2))
        assert ended.code == 2 and "lists 6 points and the study there has 0" in ended.errors[0]
        assert tree(tmp_path / "out") == before
        shutil.rmtree(tmp_path / "out")


def test_all_mistakes_of_a_space_are_told_at_once(run: Run, line: Any, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("optimizer.rl: {low: 1, high: 2}\nstages[0].flip: {low: 0, high: 2}")
    ended = run(*line("out"))
    assert ended.errors[0] == "invert.py: 2 mistakes" and len(ended.errors) == 3


OPTIONS = [
    (
        ["--space", "quikstart"],
        "--space: 'quikstart' is neither a file nor a shipped space; shipped are imagenet",
    ),
    (["--judge", "tiny_a@random"], "tiny_a@random is a teacher"),
    (["--judge", "tiny_renamed@random"], "has other classes than the first teacher"),
    (["--set", "runtime.device=[cpu, cpu]"], "a list is for ranks"),
    (["--set", "trials=2", "--set", "runtime.replicas=2"], "replicas: 1 ranks cannot be divided"),
    (["--judge", "nonesuch"], "nonesuch"),
    (["--metric", "brihgtness"], "brihgtness"),
    (["--metric", "{kind: student, step: 3}"], "did you mean 'steps'?"),
    (["--metric", "{kind: student, model: tiny_b@random, steps: 0}"], "metric.steps: must be at least 1, got 0"),
    (["--metric", "{kind: student, model: 'resnet20_cifar@random'}"], "has 10 classes and the judge has 3"),
    (
        ["--metric", "{kind: student, model: 'vgg16_bn_slim_cifar:num_classes=3@random'}"],
        "student: vgg16_bn_slim_cifar:num_classes=3@random: its forward pass fails on images of 8 x 8",
    ),
    (["--metric", "distance"], "name them by --data"),
    (["--data", "somewhere"], "reads no real images"),
    (["--trials", "0"], "give at least 1"),
    (["--seeds", "0"], "--seeds 0: give 1 to"),
    (["--confirm", "1"], "--confirm 1: give 2 to 5"),
    (["--sampler", "grid"], "has no end of values"),
    (["--storage", ""], "--storage is empty"),
    (["--storage", "nonsense"], "give a database that can be reached"),
    (["--storage", "sqlite:////nonesuch/place/study.db"], "unable to open database file"),
    (["--storage", "sqlite:///a.db", "--overwrite"], "optuna delete-study"),
    (["--space", "quikstart"], "quickstart"),
    (["--space", "none.yaml"], "none.yaml: cannot be read"),
    (["--sampler", "cmaes"], "invalid choice"),
]


@pytest.mark.parametrize(("words", "expected"), OPTIONS, ids=[" ".join(words) for words, _ in OPTIONS])
def test_mistakes_in_options(run: Run, line: Any, tmp_path: Path, words: list[str], expected: str) -> None:
    ended = run(*line("out", *words))
    assert ended.code == 2 and len(ended.errors) == 1 and expected in ended.errors[0], ended.errors


def test_a_password_is_not_told(run: Run, line: Any) -> None:
    ended = run(*line("out", "--storage", "nonesuch://me:secret@host/name"))
    assert ended.code == 2 and len(ended.errors) == 1 and "secret" not in ended.errors[0]


def test_without_the_extra(line: Any, tmp_path: Path) -> None:
    words = [str(word) for word in line("out")]
    for package in ("optuna", "matplotlib"):
        code = f"import sys; sys.modules[{package!r}] = None; from ensemble import cli; sys.exit(cli.main({words!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and not (tmp_path / "out").exists()
        text = f"search: the package {package} is not installed; pip install -e '.[search]'"
        assert done.stderr.splitlines() == [f"invert.py: {text}"]


@pytest.mark.usefixtures("fast")
def test_nothing_is_overwritten(run: Run, line: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run(*line("out", trials=2)).code == 0
    before = tree(folder)
    ended = run(*line("out", trials=2))
    assert ended.code == 2 and "resume (--resume)" in ended.errors[0]
    ended = run(*line("out", "--resume", "--set", "optimizer.lr=0.3", "--seeds", 1))
    assert ended.code == 2 and "differs in seeds, recipe.optimizer.lr" in ended.errors[0]
    assert tree(folder) == before
    (folder / "mine.txt").write_text("mine")
    assert run(*line("out", "--overwrite", "--seeds", 1, trials=1)).code == 0
    assert len(rows(folder)) == 1 and (folder / "mine.txt").read_text() == "mine"
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "summary.json").write_text("{}")
    for how in ("--resume", "--overwrite"):
        ended = run(*line("else", how))
        assert ended.code == 2 and "holds other files and no search" in ended.errors[0]
    assert (tmp_path / "else" / "summary.json").read_text() == "{}"
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in run(*line("file")).errors[0]


@pytest.mark.usefixtures("fast")
def test_a_search_that_goes_on_is_not_replaced(run: Run, line: Any, tmp_path: Path) -> None:
    assert run(*line("out", trials=1)).code == 0
    with SearchFolder(tmp_path / "out").worker():
        ended = run(*line("out", "--overwrite"))
        assert ended.code == 2 and "is in use by process" in ended.errors[0]
        assert run(*line("out", "--resume", trials=2)).code == 0
    assert run(*line("out", "--overwrite", trials=1)).code == 0


def test_settings_are_one_study_whatever_the_device(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("optimizer.lr: [0.1, 0.2]")
    space = read_space(tmp_path / "space.yaml")

    def settings(*overrides: str, data: str | None = None) -> Settings:
        recipe = load_recipe("quickstart", *overrides)
        return Settings(recipe, space, parse_metric("student"), "judge", data, 2, "tpe", "median")

    assert settings().study == settings("runtime.device=cpu").study != settings("seed=1").study
    assert settings(data="a/real.tar").study == settings(data="b/real.tar").study


def test_the_shipped_space_fits_its_recipe(run: Run, tmp_path: Path) -> None:
    from ensemble.applications.search import space_file
    from ensemble.search.space import check_space

    recipe = load_recipe("quickstart")
    assert space_file("quickstart") == space_file("search/quickstart")
    space = read_space(space_file("quickstart"))
    check_space(space, recipe, "quickstart")
    assert None not in space.encoded(space.values_of(recipe)).values()  # the recipe as it is lies in it


def test_what_a_study_lost_is_told(line: Callable[..., list[Any]], run: Run, fast: None, tmp_path: Path) -> None:
    assert run(*line("out", trials=3)).code == 0
    before = tree(tmp_path / "out")
    fewer = run(*line("out", "--resume", trials=2))
    assert fewer.code == 2 and "trials: the study holds 3 points already" in fewer.errors[0]
    assert tree(tmp_path / "out") == before
    (tmp_path / "out" / "study.db").write_bytes(b"no database at all" * 100)
    damaged = run(*line("out", "--resume", trials=3))
    assert damaged.code == 2 and "study.db is damaged" in damaged.errors[0] and "--overwrite" in damaged.errors[0]
    (tmp_path / "out" / "study.db").unlink()
    lost = run(*line("out", "--resume", trials=3))
    assert lost.code == 2 and "has lost its study.db; pass --overwrite" in lost.errors[0]
    assert run(*line("out", "--overwrite", trials=3)).code == 0
