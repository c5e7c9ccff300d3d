"""The Python face: what a user writes in a script or a notebook."""

from __future__ import annotations

import base64
import copy
import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import ensemble
from ensemble import ImageTerm, ModelCard, Recipe, Results, Slice, TeacherTerm, Totals, invert, load_recipe
from ensemble.runs.folder import ResultsFolder
from ensemble.teachers.statistics import BNStatistics
from ensemble.teachers.taps import Tap
from ensemble.teachers.teacher import Observation

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)
CARD = ModelCard("own", "test", 8, 4, mean=MEAN, std=STD, class_names=("ant", "bee", "cat", "dog"))


class Net(nn.Module):
    """Keeps its last features on itself, as most examples of hooks do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = self.norm(self.conv(x)).relu().mean((2, 3))
        self.seen[:] = [self.features]
        return self.head(self.features)


def net(seed: int, width: int = 6) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(width)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """One thread, so that runs in parallel do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPTIONS = {"iterations": 4, "precision": "fp32", "device": "cpu", "progress": False, "seed": 3}
pytestmark = pytest.mark.filterwarnings("ignore:.*misses:UserWarning", "ignore:.*did not fall:UserWarning")


def test_two_modules_and_a_lambda() -> None:
    results = invert(
        [(net(0), CARD), (net(1, 9), CARD)],
        targets=["cat", 0],
        images_per_class=2,
        terms=[lambda view: view.std(dim=1).mean()],
        **OPTIONS,
    )
    assert results is not None
    assert results.images.shape == (4, 3, 8, 8) and results.images.dtype == torch.float32
    assert results.images.min() >= 0 and results.images.max() <= 1
    assert results.targets.tolist() == [2, 0, 2, 0]
    assert list(results.logits) == ["own", "own-2"] and results.logits["own-2"].shape == (4, 4)
    assert [row["class"] for row in results.per_image] == ["cat", "ant"] * 2
    assert {row["teacher"] for row in results.per_layer} == {"own", "own-2"}
    assert results.grid().width > 100 and "4 images of 8 x 8" in repr(results)


def test_a_default_device_and_autocast_are_not_the_runs() -> None:
    def images() -> torch.Tensor:
        results = invert([network], **OPTIONS)
        assert results is not None
        return results.images

    network = net(0), CARD
    expected = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(images(), expected) and torch.is_autocast_enabled("cpu")
    with torch.device("meta"):
        found = images()
        assert torch.get_default_device().type == "meta"
    torch.set_default_device("meta")
    try:
        other = images()
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected) and torch.equal(other, expected)


def test_logits_and_rows_are_what_the_networks_say() -> None:
    judge = net(7)
    results = invert([(net(0), CARD)], verifiers=[(judge, CARD)], **OPTIONS)
    assert results is not None
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    for name, network in (("own", net(0)), ("own-2", judge)):
        expected = network.eval()((results.images - mean) / std).detach()
        torch.testing.assert_close(results.logits[name], expected, rtol=1e-4, atol=1e-5)
        probabilities = expected.softmax(1)[torch.arange(4), results.targets]
        rows = results.per_image
        torch.testing.assert_close(torch.tensor([row[f"{name}/probability"] for row in rows]), probabilities)
        assert [row[f"{name}/reads"] for row in rows] == expected.argmax(1).tolist()
    x = net(0).eval().conv((results.images - mean) / std)  # the running statistics of a new layer are 0 and 1
    (row,) = results.per_layer
    assert row["mean_distance"] == pytest.approx(float(x.mean((0, 2, 3)).norm() / 6**0.5), rel=1e-4)
    gap = (x.var((0, 2, 3), correction=0) - 1).norm() / 6**0.5
    assert row["variance_distance"] == pytest.approx(float(gap), rel=1e-4)
    independent = 4 * 64 / (4 + 64 / 12)  # of 4 images
    assert row["level"] == "estimated" and row["mean_level"] == pytest.approx(independent**-0.5)
    assert row["variance_level"] == pytest.approx((2 / independent) ** 0.5)


def test_modules_are_left_as_they_were() -> None:
    module = net(0).train()
    module(torch.rand(2, 3, 8, 8))  # it holds an activation with a history now
    before, held = copy.deepcopy(module.state_dict()), module.features
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.warns(UserWarning, match="Net comes without mean and std; ImageNet's are assumed"):
        invert([module], input_size=8, **OPTIONS)
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.features is held and module.seen == [held]
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_the_same_call_gives_the_same_bits_as_the_command_line(tmp_path: Path) -> None:
    fields = {"targets": ["cat", "dog"], "images_per_class": 2, "iterations": 3, "precision": "fp32", "seed": 5}
    mine = invert(["resnet20_cifar"], "optimizer.lr=0.2", device="cpu", progress=False, **fields)
    command = "--models resnet20_cifar --set optimizer.lr=0.2 --targets cat dog --images-per-class 2 --iterations 3"
    words = [*command.split(), "--precision", "fp32", "--seed", "5", "--device", "cpu", "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(ROOT / "invert.py"), *words], check=True, env=environment, capture_output=True)
    assert mine is not None
    assert torch.equal(mine.images, load_file(tmp_path / "images.safetensors")["images"])
    opened = Results.open(tmp_path)
    assert opened.recipe == mine.recipe and opened.per_image == mine.per_image
    assert opened.class_names == mine.class_names and opened.summary["teachers"] == mine.summary["teachers"]


def test_saved_results_are_read_back(tmp_path: Path) -> None:
    results = invert([(net(0), CARD)], **OPTIONS)
    assert results is not None
    results.save(tmp_path / "mine")
    again = Results.open(tmp_path / "mine")
    assert torch.equal(again.images, results.images) and torch.equal(again.targets, results.targets)
    assert torch.equal(again.logits["own"], results.logits["own"])
    assert (again.per_image, again.per_layer) == (results.per_image, results.per_layer)
    assert "<own> was a module in memory" in (tmp_path / "mine" / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match="not empty"):
        results.save(tmp_path / "mine")
    results.save(tmp_path / "mine", overwrite=True)


def test_a_recipe_by_name_with_overrides() -> None:
    recipe = load_recipe("quickstart", "optimizer.lr=0.2", "images_per_class=1")
    assert isinstance(recipe, Recipe) and recipe.optimizer.lr == 0.2 and len(recipe.teachers) == 3
    for source in (recipe, ROOT / "recipes" / "quickstart.yaml", "quickstart"):
        results = invert(source, "optimizer.lr=0.2", images_per_class=1, targets=[0], verifiers=[], **OPTIONS)
        assert results is not None and results.recipe.optimizer.lr == 0.2 and results.recipe.iterations == 4


def test_a_run_goes_on_and_a_finished_one_is_opened(tmp_path: Path) -> None:
    options = {**OPTIONS, "optimizer": {"schedule": "constant"}, "best_every": 0}
    first = invert([(net(0), CARD)], output=tmp_path / "run", **options)
    again = invert([(net(0), CARD)], output=tmp_path / "run", resume=True, **options)
    longer = invert([(net(0), CARD)], output=tmp_path / "run", resume=True, **{**options, "iterations": 7})
    whole = invert([(net(0), CARD)], **{**options, "iterations": 7})
    assert first is not None and again is not None and longer is not None and whole is not None
    assert torch.equal(first.images, again.images) and torch.equal(longer.images, whole.images)
    with pytest.raises(ValueError, match="not empty"):
        invert([(net(0), CARD)], output=tmp_path / "run", **options)


def test_fields_may_be_kinds_and_mappings() -> None:
    results = invert(
        [{"model": (net(0), CARD), "weight": 2.0}, (net(1), CARD)],
        optimizer=ensemble.Adam(lr=0.3),
        objectives=[ensemble.CrossEntropy(weight=1.0), {"kind": "l2", "weight": 0.5}],
        image={"parameterization": ensemble.Pixels()},
        **OPTIONS,
    )
    assert results is not None
    recipe = results.recipe
    assert recipe.optimizer.lr == 0.3 and [entry.weight for entry in recipe.teachers] == [2.0, 1.0]
    assert recipe.objectives == (ensemble.CrossEntropy(weight=1.0), ensemble.L2Prior(weight=0.5))
    assert recipe.image.parameterization == ensemble.Pixels()


class Margin(TeacherTerm):
    """A term that only this file knows, without a kind and without being a dataclass."""

    weight = 1.0

    def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
        return F.multi_margin_loss(seen.logits, batch.targets, reduction="sum") / batch.images


def test_a_live_teacher_term_is_the_only_one() -> None:
    module = net(0).double().eval()
    results = invert(
        [(module, CARD)],
        objectives=[],
        terms=[Margin()],
        **{**OPTIONS, "precision": "fp64", "optimizer": {"lr": 0.05, "schedule": "constant"}},
        image={"parameterization": {"kind": "pixels"}, "start": {"kind": "grey"}},
        best_every=0,
    )
    assert results is not None
    images = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([images], lr=0.05, betas=(0.5, 0.9))
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    for _ in range(4):  # the default recipe of small images jitters and flips: of a grey start that shows nothing
        optimizer.zero_grad()
        F.multi_margin_loss(module((images - mean) / std), torch.arange(4)).backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    assert results.summary["teachers"]["own"]["Margin"] >= 0
    assert "the term Margin was given in memory" in results.notes


def test_a_quiet_run_still_warns() -> None:
    with pytest.warns(UserWarning, match=r"own/cross_entropy did not fall: .* try a lower learning rate"):
        invert([(net(0), CARD)], objectives=[{"kind": "cross_entropy", "weight": -1.0}], **OPTIONS)


def test_a_search_that_is_stopped_gives_the_best_points_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    objectives = [{"kind": "activation", "units": "conv:0"}]
    options = {**OPTIONS, "iterations": 20, "stages": [{}], "optimizer": {"kind": "lbfgsb"}, "objectives": objectives}
    options["image"] = {"parameterization": {"kind": "pixels"}}
    with monkeypatch.context() as patched:
        patched.setattr("ensemble.runs.trial.show", lambda here, trial, step: setattr(here.stop, "asked", True))
        stopped = invert([(net(0), CARD)], **options)
    shorter = invert([(net(0), CARD)], **{**options, "iterations": stopped.summary["steps"][0]})
    assert stopped.summary["stopped"] and torch.equal(stopped.images, shorter.images)


def test_a_run_that_goes_on_warns_as_an_uninterrupted_one(tmp_path: Path) -> None:
    for steps in (4, 6):
        options = {**OPTIONS, "objectives": [{"kind": "cross_entropy", "weight": -1.0}], "iterations": steps}
        results = invert([(net(0), CARD)], output=tmp_path, resume=True, **options)
        assert any("own/cross_entropy did not fall" in text for text in results.summary["warnings"])


def test_ctrl_c_gives_what_there_is(tmp_path: Path) -> None:
    calls = 0

    def interrupt(view: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return view.sum() * 0

    options = {**OPTIONS, "iterations": 50, "best_every": 0}
    results = invert([(net(0), CARD)], terms=[interrupt], output=tmp_path / "run", **options)
    assert results is not None and results.summary["stopped"] is True and results.images.shape == (4, 3, 8, 8)
    assert not (tmp_path / "run" / "summary.json").exists()
    calls = 10
    rest = invert([(net(0), CARD)], terms=[interrupt], output=tmp_path / "run", resume=True, **options)
    calls = 10
    whole = invert([(net(0), CARD)], terms=[interrupt], **options)
    assert rest is not None and whole is not None and torch.equal(rest.images, whole.images)


def test_a_run_is_gone_on_with_by_what_it_began_with(tmp_path: Path) -> None:
    """Modules are known by their values, terms by their names; what differs is refused."""
    run, prior = tmp_path / "run", [lambda view: view.mean()]
    first = invert([(net(0), CARD)], terms=prior, output=run, **OPTIONS)
    again = invert([(net(0), CARD)], terms=prior, output=run, resume=True, **OPTIONS)
    assert first is not None and again is not None and torch.equal(first.images, again.images)
    for teachers, terms in (([(net(1), CARD)], prior), ([(net(0), CARD)], [])):
        with pytest.raises(ValueError, match="what was given in memory"):
            invert(teachers, terms=terms, output=run, resume=True, **OPTIONS)


def test_a_run_does_not_go_on_with_another_mean(tmp_path: Path) -> None:
    invert([(net(0), CARD)], output=tmp_path, **OPTIONS)
    other = replace(CARD, mean=(0.1,) * 3)
    with pytest.raises(ValueError, match="weights, statistics, input size, mean or std of own are not those"):
        invert([(net(0), other)], output=tmp_path, resume=True, **{**OPTIONS, "iterations": 9})


@pytest.mark.parametrize(
    "prior",
    [
        lambda view: torch.tensor(1.0),
        lambda view: view.detach().mean(),
        lambda view: nn.Parameter(torch.ones(3)).sum(),
    ],
)
def test_a_prior_without_a_gradient_is_told(prior: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="lambda: no gradient reaches the images, so it does nothing"):
        invert([(net(0), CARD)], terms=[prior], **OPTIONS)


def test_a_loss_that_may_be_negative_is_never_enough() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.enough: the loss of class_score may be below 0"):
        invert([(net(0), CARD)], "optimizer.enough=0.1", "objectives=[{kind: class_score}]", **OPTIONS)


def test_a_verifier_of_a_teachers_name_leaves_its_readings_alone() -> None:
    results = invert(["resnet20_cifar"], verifiers=["resnet20_cifar@random"], targets=[0, 1], **OPTIONS)
    assert results is not None and set(results.logits) == {"resnet20_cifar", "resnet20_cifar#verifier"}
    read = results.logits["resnet20_cifar"].argmax(1) == results.targets
    assert results.summary["teachers"]["resnet20_cifar"]["accuracy"] == pytest.approx(float(read.float().mean()))
    assert set(results.summary["verifiers"]) == {"resnet20_cifar#verifier"}


def test_an_early_stopped_run_goes_on(tmp_path: Path) -> None:
    options = {**OPTIONS, "iterations": 40, "best_every": 0}
    options["optimizer"] = {"lr": 1e-9, "schedule": "constant", "early_stopping": 3}
    options["stages"] = [{"iterations": 40}]
    first = invert([(net(0), CARD)], output=tmp_path, **options)
    assert first is not None
    steps = _steps(tmp_path)
    assert steps < 40 and first.summary["steps"] == [steps]
    assert "no progress: the run ends here" in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    again = invert([(net(0), CARD)], output=tmp_path, resume=True, **{**options, "iterations": 80})
    assert again is not None and _steps(tmp_path) >= steps + 4


def test_a_shortened_run_that_goes_on_keeps_its_waits(tmp_path: Path) -> None:
    """A recipe of 40 steps, begun with 4: what waits for steps has a tenth of its length, also in the longer run."""
    options = {**OPTIONS, "best_every": 0, "stages": [{"iterations": 40}]}
    options["optimizer"] = {"schedule": "plateau", "plateau_patience": 30, "early_stopping": 20, "warmup": 10}
    for total in (4, 6):
        results = invert([(net(0), CARD)], output=tmp_path, resume=total == 6, **{**options, "iterations": total})
        assert results is not None and results.recipe.iterations == total
        optimizer = results.recipe.optimizer
        assert (optimizer.plateau_patience, optimizer.early_stopping, optimizer.warmup) == (3, 2, 1)


def test_a_notebook_shows_results() -> None:
    results = invert([(net(0), CARD)], **OPTIONS)
    assert results is not None
    shown = results._repr_html_()
    assert repr(results).partition("(")[2][:20] in shown
    picture = Image.open(io.BytesIO(base64.b64decode(shown.partition("base64,")[2].partition("'")[0])))
    assert np.array_equal(np.array(picture), np.array(results.grid()))


def _steps(folder: Path) -> int:
    (file,) = (folder / "checkpoints").glob("*.json")
    return int(file.stem.rpartition("-")[2])


def test_a_term_whose_sums_grow_with_the_slice_is_named() -> None:
    class Rows(Margin):
        def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
            return seen.logits

        def loss(self, total: Totals, t: int) -> torch.Tensor:
            return total[t].sum()

    with pytest.raises(ValueError, match=r"Rows: sums of 4 images have shape \(4, 4\)"):
        invert([(net(0), CARD)], terms=[Rows()], **OPTIONS)


def test_a_term_taps_layers_by_their_names() -> None:
    class Tapping(Margin):
        layer = "conv"

        def needs(self, teacher: object) -> list[Tap]:
            return [Tap(self.layer)]

        def sums(self, seen: Observation, batch: Slice) -> torch.Tensor:
            assert seen.taps[Tap("conv")].shape[1] == 6
            return seen.taps[Tap("conv")].mean((1, 2, 3)).sum() / batch.images

    class Mistaken(Tapping):
        layer = "convv"

    results = invert([(net(0), CARD)], terms=[Tapping()], **OPTIONS)
    assert results is not None and len(results.images) == 4
    with pytest.raises(ValueError, match="has no layer 'convv'; did you mean 'conv'"):
        invert([(net(0), CARD)], terms=[Mistaken()], **OPTIONS)


def test_the_last_good_images_are_left_on_the_error() -> None:
    calls = iter(range(100))

    def poison(view: torch.Tensor) -> torch.Tensor:
        return view.sum() * (1.0 if next(calls) < 3 else float("nan"))

    with pytest.raises(ensemble.NotFiniteError) as caught:
        invert([(net(0), CARD)], terms=[poison], **OPTIONS)
    images = caught.value.images
    assert images is not None and images.shape == (4, 3, 8, 8) and torch.isfinite(images).all()


def test_folders_of_something_else_are_told_apart(tmp_path: Path) -> None:
    results = invert([(net(0), CARD)], **OPTIONS)
    assert results is not None
    results.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run is not empty; pass overwrite=True, or give another folder"):
        results.save(tmp_path / "run")
    for name, file, said in (
        ("student", "weights.safetensors", "this is a trained network, which MODEL@"),
        ("set", "manifest.json", "this is a dataset, which GeneratedImages opens"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        with pytest.raises(ValueError, match=said):
            Results.open(tmp_path / name)


def test_partial_results_are_not_taken_for_a_finished_run(tmp_path: Path) -> None:
    results = invert([(net(0), CARD)], **OPTIONS)
    assert results is not None
    results.summary["stopped"] = True
    results.save(tmp_path / "partial")
    assert not ResultsFolder(tmp_path / "partial").finished and Results.open(tmp_path / "partial").summary["stopped"]


SCRIPT = """
import os, signal, sys
from ensemble import invert
calls = 0
def prior(view):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return view.sum() * 0
results = invert(["resnet20_cifar@random", "wrn16_2_cifar@random"], targets=[0, 1], trials=2, iterations=12,
                 terms=[prior], device="cpu", precision="fp32", progress=False, best_every=0, output=sys.argv[1])
if os.environ["RANK"] == "0":
    print("STOPPED", results.summary.get("stopped"), len(results.images))
else:
    assert results is None
"""


def test_a_stop_of_one_rank_ends_all_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29544"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "script.py", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "STOPPED True 2" in done.stdout
    assert not ResultsFolder(tmp_path / "out").finished


def test_targets_as_people_have_them() -> None:
    for targets, expected in ((2, [2]), (torch.tensor([1, 3]), [1, 3]), (range(2), [0, 1])):
        results = invert([(net(0), CARD)], targets=targets, **OPTIONS)
        assert results is not None and results.targets.tolist() == expected


def test_runs_leave_nothing_in_memory() -> None:
    def count() -> int:
        gc.collect()
        return sum(isinstance(thing, BNStatistics) for thing in gc.get_objects())

    invert([(net(0), CARD)], **OPTIONS)
    before = count()
    for seed in range(3):
        invert([(net(seed), CARD)], **OPTIONS)
    assert count() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: invert("resnet20_cifar"), "is a network, no recipe"),
        (lambda: invert(["resnet20_cifar"], iteration=5), "did you mean 'iterations'"),
        (lambda: invert([net(0)], input_size=(16, 16)), "input_size: expected a number of pixels"),
        (lambda: invert(["resnet20_cifar"], terms=lambda view: view), "lambda: it gives a tensor of shape"),
        (lambda: invert(["resnet20_cifar"], terms=[lambda view: view.nonsense]), "lambda: AttributeError"),
        (lambda: invert(["resnet20_cifar"], terms=[lambda v: v.std((1, 2, 3))], targets=[3]), r"shape \(1,\); a term"),
        (lambda: invert(["resnet20_cifar"], terms=[lambda v: v.sum() * float("nan")]), "lambda: it is nan for the"),
        (
            lambda: invert(["resnet20_cifar"], terms=[lambda v: (v - v).norm(), lambda v: (0 * v.sum()).sqrt()]),
            "not finite",
        ),
        (lambda: invert(["resnet20_cifar"], objectives=[{"kind": "bn_matching", "layers": {"*": -1}}]), "at least 0"),
        (lambda: invert(["resnet20_cifar"], mean=[0.5] * 3), "mean: it is for modules without a ModelCard"),
        (lambda: invert(["resnet20_cifar"], terms=[Margin]), "Margin is a class; give an instance"),
        (lambda: invert(["resnet20_cifar"], device=["cpu", "cpu"]), "a list is for ranks"),
        (lambda: invert(), "name teachers or a recipe"),
        (lambda: invert([]), "name at least one"),
        (lambda: invert([net(0)]), "Net comes without a ModelCard; say input_size="),
        (lambda: invert(5), "teachers: expected a list of names or modules"),
        (lambda: invert([net(0)], input_size=8, mean="grey"), "mean: expected a number, or one a channel"),
        (lambda: invert([net(0)], input_size=8, class_names="abcd"), "class_names: expected a list of names"),
        (lambda: invert([3]), "expected a name, a module, or a pair"),
        (lambda: invert([net(0)], input_size=8, class_names=["a"]), "Net: 1 class names for 4 classes"),
        (lambda: invert([net(0)], input_size=8, std=[0.5, 0, 1]), "std above 0"),
        (lambda: invert([nn.Linear(9, 2)], input_size=8), r"Linear: no logits \(N, classes\)"),
        (lambda: invert("quikstart"), "did you mean 'quickstart'"),
        (lambda: invert(["resnet20_cifar"], targts=["cat"]), "targts: unknown keyword; did you mean 'targets'"),
        (lambda: invert(["resnet20_cifar"], iterations="5"), "iterations: expected an integer"),
        (lambda: invert(["resnet20_cifar"], terms=[3]), "neither a TeacherTerm, an ImageTerm nor a function"),
        (lambda: invert(["<Net>"]), "<Net> was a module in memory"),
        (lambda: Results.open("nowhere"), "does not exist"),
    ],
)
def test_mistakes_are_one_line(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_the_package_is_imported_lazily() -> None:
    code = "import ensemble, sys; assert 'torch' not in sys.modules; print(len(dir(ensemble)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) == len(ensemble.__all__)
    assert all(getattr(ensemble, name) is not None for name in ensemble.__all__)
    assert ImageTerm.kinds is TeacherTerm.kinds  # one table: a recipe's objectives are told apart by kind alone
    with pytest.raises(AttributeError, match="no attribute 'invent'"):
        _ = ensemble.invent  # type: ignore[attr-defined]


def test_a_term_that_the_recipe_has_already_is_a_further_one(tmp_path: Path) -> None:
    options = {**OPTIONS, "objectives": [ensemble.CrossEntropy()]}
    twice = invert([(net(0), CARD)], terms=ensemble.CrossEntropy(), output=tmp_path, **options)
    assert twice is not None and twice.recipe.objectives == (ensemble.CrossEntropy(),) * 2
    again = invert([(net(0), CARD)], terms=ensemble.CrossEntropy(), output=tmp_path, resume=True, **options)
    assert again is not None and again.recipe.objectives == twice.recipe.objectives


def test_numbers_of_numpy_are_numbers_and_no_terms_are_none() -> None:
    results = invert([(net(0), CARD)], targets=[np.int64(1), torch.tensor(0)], terms=None, **OPTIONS)
    assert results is not None and results.targets.tolist()[:2] == [1, 0]
    said = {"mean": np.float32(0.5), "std": np.full(3, 0.25, np.float32), "class_names": None}
    assert invert([net(0)], input_size=8, **said, **OPTIONS) is not None
    with pytest.raises(ValueError, match="takes 3 channels, and mean has 0 numbers"):
        invert([net(0)], input_size=8, mean=[], std=0.25, **OPTIONS)
