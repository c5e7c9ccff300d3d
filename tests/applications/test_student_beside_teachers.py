"""Runs with a student that competition parts from its teachers."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import PLUGIN, end, images, start
from safetensors.torch import load_file

from ensemble import load_plugin, load_recipe
from ensemble.machine.ranks import ProcessContext
from ensemble.runs.build import build_ensemble, build_inversion
from ensemble.runs.plan import make_plan
from ensemble.runs.prepare import _acting_together

SHORT = ["--iterations", "4", "--precision", "fp64", "--seed", "3", "--targets", "0", "1", "--images-per-class", "3"]
STUDENT = "{model: tiny_plain@random, student: true}"
NETWORKS = f"teachers=[{{model: tiny_a@random}}, {{model: tiny_b@random}}, {STUDENT}]"


def line(*settings: str, weight: float = 1.0) -> list[str]:
    terms = f"objectives=[{{kind: cross_entropy}}, {{kind: bn_matching}}, {{kind: competition, weight: {weight}}}]"
    settings = (NETWORKS, terms, *settings)
    return [*PLUGIN, "--models", "tiny_a@random", *SHORT, *(part for one in settings for part in ("--set", one))]


def test_two_ranks_do_as_one_and_the_student_is_written_beside_the_teachers(run, tmp_path):
    assert run(*line(weight=20), "--output", tmp_path / "1").code == 0
    assert end(start(*line(weight=20), "--nproc", "2", "--output", tmp_path / "2")).code == 0
    assert torch.allclose(images(tmp_path / "1"), images(tmp_path / "2"), atol=1e-6)
    assert load_file(tmp_path / "1/logits.safetensors").keys() == {"tiny_a", "tiny_b", "student"}
    summary = json.loads((tmp_path / "1/summary.json").read_text())
    assert summary["teachers"].keys() == {"tiny_a", "tiny_b", "student"}
    assert not any(warning.startswith("student misses") for warning in summary["warnings"])
    assert run(*line(weight=0), "--output", tmp_path / "0").code == 0
    assert not torch.allclose(images(tmp_path / "1"), images(tmp_path / "0"), atol=1e-3)
    pulled, not_pulled = (
        json.loads((tmp_path / weight / "metrics.jsonl").read_text().splitlines()[-1]) for weight in ("1", "0")
    )
    assert pulled["tiny_a/competition"] < not_pulled["tiny_a/competition"]
    assert {key for key in pulled if key.startswith("student/")} == {"student/accuracy"}


def test_a_student_has_no_part_to_scale(run, tmp_path):
    ended = run(*line("ensemble.aggregation=equal"), "--output", tmp_path / "out")
    assert ended.code == 2 and "a student is none; use `sum`" in ended.errors[-1]


def test_a_line_of_progress_is_about_the_teachers(run, tmp_path):
    """What is shown of each loss is its mean over them, not over the student too, which has none."""
    ended = run(*line(weight=20), "--set", "record_every=1", "--output", tmp_path / "out")
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    (shown,) = (text for text in ended.output.splitlines() if text.startswith("step 4/4"))
    said = dict(zip(shown.split(), shown.split()[1:], strict=False))
    for term in ("cross_entropy", "competition", "accuracy"):
        mean = (last[f"tiny_a/{term}"] + last[f"tiny_b/{term}"]) / 2
        assert float(said[term]) == pytest.approx(mean, rel=1e-3), term
    rows = [text.split()[:2] for text in ended.output.splitlines()]
    assert ["tiny_a", "teacher"] in rows and ["student", "student"] in rows


def test_agreement_is_the_teachers(run, tmp_path):
    assert run(*line("agreement=true"), "--output", tmp_path / "out").code == 0
    assert load_file(tmp_path / "out/agreement.safetensors").keys() == {"maps", "tiny_a~tiny_b"}


@pytest.mark.parametrize(("acting", "company"), [("turn", [{0, 2}, {1, 2}]), ("all", [{0, 1, 2}])])
def test_memory_is_tried_with_the_student(acting, company, tmp_path):
    """What acts together while `micro_batch: auto` looks for what fits."""
    load_plugin(PLUGIN[1])
    recipe = load_recipe(written(tmp_path, acting))
    plan = make_plan(recipe, [torch.device("cpu")])
    alone = ProcessContext(0, 1, torch.device("cpu"))
    inversion = build_inversion(plan, build_ensemble(plan, alone), alone, 0)
    assert [weights.keys() for weights in _acting_together(inversion)] == company
    assert all(sum(weights.values()) == 1 for weights in _acting_together(inversion))


def written(folder, acting):
    file = folder / "recipe.yaml"
    terms = "[{kind: cross_entropy}, {kind: competition}]"
    file.write_text(f"{NETWORKS.replace('=', ': ', 1)}\nensemble: {{acting: {acting}}}\nobjectives: {terms}\n")
    return str(file)


def test_any_number_of_ranks_gives_the_same_bits(run, tmp_path):
    exact = [*line("ensemble.acting=turn"), "--reproducible", "ranks"]
    assert run(*exact, "--output", tmp_path / "1").code == 0
    assert end(start(*exact, "--nproc", "2", "--output", tmp_path / "2")).code == 0
    assert torch.equal(images(tmp_path / "1"), images(tmp_path / "2"))


def test_mapped_classes_are_compared_by_their_names(run, tmp_path):
    """A teacher and a student of ten classes beside one of three: what the recipe says of them reaches the term."""
    mapped = "{model: resnet20_cifar@random, classes: {circle: 2, square: 0, star: 1}}"
    student = "{model: resnet20_cifar@random, student: true, classes: {circle: 7, square: 1, star: 4}}"
    settings = (f"teachers=[{{model: tiny_a@random}}, {mapped}, {student}]",)
    assert run(*line(*settings), "--output", tmp_path / "out").code == 0
    load_plugin(PLUGIN[1])
    recipe = load_recipe(str(tmp_path / "out" / "recipe.yaml"))
    plan = make_plan(recipe, [torch.device("cpu")])
    placed = build_ensemble(plan, ProcessContext(0, 1, torch.device("cpu"))).teachers
    assert [teacher.profile.columns for teacher in placed] == [None, (2, 0, 1), (7, 1, 4)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["objectives=[{kind: cross_entropy}]"], "teachers[2].student: no term compares it with the teachers"),
        (["teachers=[{model: tiny_a@random}]"], "competition compares the teachers with a student; add"),
        ([f"teachers=[{STUDENT}]"], "teachers[0].student: there is no teacher; put one before it"),
        ([f"teachers=[{STUDENT}, {{model: tiny_a@random}}]"], "teachers[0].student: the student comes last"),
        ([f"teachers=[{{model: tiny_a@random}}, {STUDENT}, {STUDENT}]"], "there is a student already, teachers[1]"),
        (["ensemble={acting: random, count: 3}"], "ensemble.count: 3 of 2 teachers cannot act"),
        (
            [
                "teachers=[{model: tiny_a@random}, {model: resnet20_cifar@random, student: true, "
                "classes: {circle: 0, square: 1}}]"
            ],
            "competition: the classes of student are mapped without 'star'",
        ),
    ],
)
def test_mistakes_are_one_line_each(run, settings, said, tmp_path):
    ended = run(*line(*settings), "--output", tmp_path / "out")
    assert ended.code == 2 and len(ended.errors) == 1 and said in ended.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_student(run, tmp_path):
    ended = run(*line("ensemble.acting=turn"), "--dry-run", "--output", tmp_path / "none")
    assert ended.code == 0 and "competition[js, T 3]" in ended.output and "w(student) = 0" in ended.output
