"""invert.py dataset: what it makes, how it goes on after any end, and what it refuses."""

from __future__ import annotations

import json
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ONE, PLUGIN, ROOT, TWO, end, environment, one_line, start, told, tree
from safetensors import safe_open
from safetensors.torch import load_file

from ensemble import GeneratedImages, cli
from ensemble.image.warm import Warm
from ensemble.machine.progress import SilentProgress
from ensemble.runs import dataset
from ensemble.runs.build import build_inversion
from ensemble.runs.dataset_job import dataset_job
from models import create_model

COMMAND = ["dataset", *TWO, "--iterations", "3", "--set", "record_every=1", "--set", "image.batch_size=8"]
SINGLE = ["dataset", *ONE, "--iterations", "3", "--set", "image.batch_size=8"]
PLUGIN_DATASET = ["dataset", *PLUGIN]
TWO_SPACES = ["--models", "tiny_a@random", "tiny_renamed@random", "--set", "teachers[1].classes={star: 0}"]
TWO_SPACES += ["--targets", "star"]
RANDOM = {"tiny_a": "tiny_a@random", "tiny_b": "tiny_b@random"}


def made(folder: Path) -> dict[str, object]:
    """All that follows from the recipe: not the times; nor the command, which is pytest's own in this process."""
    files: dict[str, object] = {**tree(folder)}
    for name in ("batches.jsonl", "cost.json"):
        del files[name]
    return files | {"manifest.json": {**manifest(folder), "command": None}}


def listed(folder: Path) -> list[dict[str, object]]:
    """The batches in their order, without the time."""
    rows = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=lambda row: str(row["file"]))


def lines(folder: Path) -> int:
    """How many batches are listed."""
    file = folder / "batches.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def check_same(folder: Path, other: Path) -> None:
    assert made(folder) == made(other)
    assert listed(folder) == listed(other)


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "shards").iterdir())}


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of two teachers, in batches of 8, 8 and 4, made at once."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert cli.main([str(word) for word in (*COMMAND, "--images", "20", "--output", folder)]) == 0
    return folder


# ---- what it makes


def test_shards_hold_the_images_of_a_run_rounded(whole, run, tmp_path):
    """As many trials of the run make the same images, in floats."""
    trials = [*COMMAND[1:], "--trials", "3", "--output", tmp_path]
    assert run(*trials).code == 0
    floats = load_file(tmp_path / "images.safetensors")
    stored = [load_file(file) for file in sorted((whole / "shards").iterdir())]
    assert [len(shard["targets"]) for shard in stored] == [8, 8, 4]
    images, targets = (torch.cat([shard[key] for shard in stored]) for key in ("images", "targets"))
    assert images.dtype == torch.uint8 and targets.dtype == torch.int64
    assert torch.equal(images, (floats["images"] * 255).round().to(torch.uint8)[:20])
    assert torch.equal(targets, floats["targets"][:20])
    for batch, file in enumerate(sorted((whole / "shards").iterdir())):
        with safe_open(file, "pt") as shard:
            assert shard.metadata() == {"seed": str(batch)}


def test_logits_are_of_the_stored_images(whole):
    """Each network alone, on the 8-bit images."""
    data = GeneratedImages(whole, verify=True)
    images = data.labelled().images.float() / 255
    for name, model in RANDOM.items():
        net, card = create_model(model)
        mean, std = (torch.tensor(x)[:, None, None] for x in (card.mean, card.std))
        with torch.no_grad():
            expected = net.eval()((images - mean) / std)
        assert torch.allclose(data.logits(name).float(), expected, atol=2e-3)
    assert data.teachers == ("tiny_a", "tiny_b") and data.models == RANDOM


def test_what_is_said_of_it(whole):
    said = manifest(whole)
    assert {key: said[key] for key in ("format", "images", "size")} == {"format": 1, "images": 20, "size": 8}
    assert said["class_names"] == ["circle", "square", "star"]
    assert said["per_class"] == {"circle": 7, "square": 7, "star": 6}
    assert [row["seed"] for row in said["shards"]] == [0, 1, 2]
    # 3 batches of 8 images, 3 steps, 2 teachers, over the 20 images that are kept
    assert said["cost"]["passes_per_image"] == 3 * 8 * 3 * 2 / 20
    assert said["cost"]["gflop_per_image"] > 0
    cost = json.loads((whole / "cost.json").read_text())
    rows = [json.loads(line) for line in (whole / "batches.jsonl").read_text().splitlines()]
    assert cost["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert cost["seconds_per_image"] == pytest.approx(cost["seconds"] / 20)
    assert (whole / "grid.png").stat().st_size > 0


def test_one_teacher_in_turn_costs_one_pass_a_step(run, tmp_path):
    assert run(*COMMAND, "--set", "ensemble.acting=turn", "--images", "16", "--output", tmp_path).code == 0
    assert manifest(tmp_path)["cost"]["passes_per_image"] == 3


def test_the_resolved_recipe_makes_the_same(whole, run, tmp_path):
    again = ["dataset", *PLUGIN, "--recipe", whole / "recipe.yaml", "--images", "20", "--output", tmp_path]
    assert run(*again).code == 0
    assert shards(tmp_path) == shards(whole)


def test_shares_of_classes(run, tmp_path):
    assert run(*SINGLE, "--images", "21", "--balance", "star=3,circle=1", "--output", tmp_path).code == 0
    assert manifest(tmp_path)["per_class"] == {"circle": 5, "star": 16}
    of_batches = [load_file(file)["targets"] for file in sorted((tmp_path / "shards").iterdir())]
    assert [(batch == 0).sum().item() for batch in of_batches] == [2, 2, 1]


def test_verifiers_read_what_is_stored(run, tmp_path):
    judged = [*SINGLE, "--verifier", "tiny_b@random", "--images", "10", "--output", tmp_path]
    assert run(*judged).code == 0
    said = manifest(tmp_path)["verifiers"]["tiny_b"]
    images, targets = GeneratedImages(tmp_path).labelled().images.float() / 255, GeneratedImages(tmp_path).targets
    net, card = create_model("tiny_b@random")
    mean, std = (torch.tensor(x)[:, None, None] for x in (card.mean, card.std))
    with torch.no_grad():
        right = (net.eval()((images - mean) / std).argmax(1) == targets).float().mean()
    assert said["accuracy"] == pytest.approx(float(right)) and said["model"] == "tiny_b@random"
    before = shards(tmp_path)
    other = run(*SINGLE, "--verifier", "tiny_plain@random", "--images", "10", "--output", tmp_path, "--resume")
    assert other.code == 0 and list(manifest(tmp_path)["verifiers"]) == ["tiny_plain"] and shards(tmp_path) == before


@pytest.mark.parametrize(
    "field", ["agreement=true", "attribution=true", "record_every=2", "checkpoint.every=5", "runtime.micro_batch=3"]
)
def test_what_does_not_decide_the_images_may_change(field, run, tmp_path):
    command = [*COMMAND, "--output", tmp_path, "--images"]
    assert run(*command, "8").code == 0
    before = shards(tmp_path)
    assert run(*command, "16", "--resume", "--set", field).code == 0
    assert {name: data for name, data in shards(tmp_path).items() if name in before} == before


def test_networks_by_name_get_batches_that_have_statistics(run, tmp_path):
    """However few classes there are, and however many images; unless a batch's size is said."""
    few = ["dataset", *ONE, "--iterations", "3", "--balance", "star=3,circle=1", "--dry-run", "--output", tmp_path]
    for said, batches in (
        ([], "2 x 100 of 8"),
        (["--images-per-class", "3"], "20 x 6 of 8"),
        (["--set", "image.batch_size=60"], "2 x 60 of 8"),
    ):
        assert f"images: {batches} x 8" in run(*few, *said, "--images", "120").output
    large = ["dataset", "--models", "resnet18@random", "--device", "cpu", "--balance", "0=1", "--output", tmp_path]
    assert "images: 2 x 20 of 224" in run(*large, "--images", "40", "--dry-run").output


def test_a_dry_run_makes_nothing(run, tmp_path):
    ended = run(*COMMAND, "--images", "21", "--dry-run", "--output", tmp_path / "out")
    assert "3 batches of 8 are made, and the last 3 of their images left out" in ended.output
    ended = run(*COMMAND, "--images", "20", "--dry-run", "--output", tmp_path / "out")
    assert ended.code == 0 and "images: 3 x 8 of 8 x 8" in ended.output and not (tmp_path / "out").exists()


def test_export_and_evaluation(whole, run, tmp_path):
    ended = run("dataset", "--output", whole, "--export", tmp_path / "pictures")
    assert ended.code == 0 and "20 pictures" in ended.output
    counts = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "pictures" / "train").iterdir()}
    assert counts == {"circle": 7, "square": 7, "star": 6}
    judged = run("evaluate", *PLUGIN[:2], whole, "--judge", "tiny_plain@random", "--json", tmp_path / "said.json")
    assert judged.code == 0, judged.errors
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["tiny_plain@random"]["sets"][str(whole)]["n"] == 20
    assert "which has no report" in one_line(run("report", whole, "--output", tmp_path / "page.html"))


def test_export_into_an_empty_folder_that_stays_what_it_is(whole, run, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run("dataset", "--output", whole, "--export", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink() and {file.name for file in (tmp_path / "real").iterdir()} == {"train"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("dataset", "--output", whole, "--export", ".").code == 0
    assert len(list((tmp_path / "here").rglob("*.png"))) == 20


@pytest.mark.parametrize("more", [["--dry-run"], ["--targets", "star"], ["--seed", "4"], ["--set", "seed=4"]])
def test_an_export_makes_nothing_else(more, whole, run, tmp_path):
    ended = run("dataset", "--output", whole, "--export", tmp_path / "pictures", *more)
    assert f"leave {more[0]} out" in one_line(ended) and not (tmp_path / "pictures").exists()


# ---- it goes on


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL at three random moments, each soon after another batch was written; then it ends."""
    options = [*COMMAND, "--iterations", "30", "--images", "92", "--resume"]
    assert end(start(*options, "--output", tmp_path / "whole")).code == 0
    killed, moments = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        process, before = start(*options, "--output", killed), lines(killed)
        while lines(killed) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert end(process).code == -signal.SIGKILL
    assert 2 < lines(killed) < 12
    process = start(*options, "--output", killed)
    assert end(process).code == 0
    check_same(killed, tmp_path / "whole")
    assert (killed / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert manifest(killed)["command"] == "python invert.py " + shlex.join(map(str, options[:-1]))
    GeneratedImages(killed, verify=True)


@pytest.mark.parametrize("call, finished", [(2, 0), (11, 1), (16, 2)])
def test_a_stop_keeps_what_is_finished(call, finished, run, tmp_path, monkeypatch):
    """6 steps, 1 measurement and 1 reading a batch; the step after the one that is asked to stop is the last."""
    command = [*COMMAND, "--iterations", "6", "--images", "20"]
    assert run(*command, "--output", tmp_path / "whole").code == 0
    monkeypatch.setenv("MISFORTUNE", f"term:0:{call}")
    stopped = run(*command, "--output", tmp_path / "out")
    assert stopped.code == 0 and "stopped at step" in stopped.errors[0] and "--resume" in stopped.errors[0]
    assert not (tmp_path / "out" / "manifest.json").exists() and len(shards(tmp_path / "out")) == finished
    monkeypatch.delenv("MISFORTUNE")
    assert "is not empty" in one_line(run(*command, "--output", tmp_path / "out"))
    first = json.loads((tmp_path / "out" / "begun.json").read_text())["command"]
    monkeypatch.setattr("sys.argv", ["invert.py", "dataset", "--resume"])
    assert run(*PLUGIN_DATASET, "--output", tmp_path / "out", "--resume").code == 0
    assert first and manifest(tmp_path / "out")["command"] == first
    check_same(tmp_path / "out", tmp_path / "whole")
    begun = tmp_path / "out" / "begun.json"
    begun.write_text(json.dumps({**json.loads(begun.read_text()), "command": "dataset --images 20 --seed 0"}))
    assert run(*PLUGIN_DATASET, "--output", tmp_path / "out", "--resume", "--images", "28").code == 0
    assert manifest(tmp_path / "out")["command"] == "dataset --images 28 --seed 0"


def test_leftovers_do_not_join(whole, run, tmp_path):
    """What no line lists is removed if it has a name of ours; nothing else is touched."""
    command = [*COMMAND, "--images", "20", "--output", tmp_path]
    assert run(*command).code == 0
    (tmp_path / "manifest.json").unlink()
    rows = (tmp_path / "batches.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "batches.jsonl").write_text(rows[0] + rows[2][:40])  # the second is not listed, the third cut short
    for name in ("000001.safetensors.tmp", "000009.safetensors", "mine.safetensors", "9.safetensors"):
        (tmp_path / "shards" / name).write_text("left over")
    assert run(*command, "--resume").code == 0
    assert (tmp_path / "shards" / "mine.safetensors").exists() and (tmp_path / "shards" / "9.safetensors").exists()
    for name in ("mine.safetensors", "9.safetensors"):
        (tmp_path / "shards" / name).unlink()
    check_same(tmp_path, whole)


def test_a_finished_one_says_so_and_goes_on_to_more(whole, run, tmp_path):
    command = [*COMMAND, "--output", tmp_path]
    assert run(*command, "--images", "12").code == 0
    before = tree(tmp_path)
    for again in ([], ["--images", "12"]):
        ended = run(*command, *again, "--resume")
        assert ended.code == 0 and "this dataset of 12 images is finished" in ended.output and tree(tmp_path) == before
    assert "holds 12 images already; ask for at least as many" in one_line(run(*command, "--images", "11", "--resume"))
    assert "holds 12 images already" in one_line(run(*command, "--images", "4", "--resume"))
    assert tree(tmp_path) == before
    assert run(*command, "--images", "20", "--resume").code == 0
    check_same(tmp_path, whole)


def test_a_shard_that_is_gone_is_made_again(whole, run, tmp_path):
    command = [*COMMAND, "--images", "20", "--output", tmp_path]
    assert run(*command).code == 0
    file = tmp_path / "shards" / "000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    before = tree(tmp_path)
    assert "000001.safetensors is damaged: its SHA-256" in one_line(run(*command, "--resume"))
    (tmp_path / "manifest.json").unlink()
    assert "000001.safetensors is damaged: its SHA-256" in one_line(run(*command, "--resume"))
    (tmp_path / "manifest.json").write_bytes(before["manifest.json"])
    assert tree(tmp_path) == before
    file.unlink()
    ended = run(*command, "--resume")
    assert ended.code == 0 and "000001.safetensors is gone; it is made again" in ended.output
    check_same(tmp_path, whole)


@pytest.mark.parametrize(
    "looks_back",
    [
        ["--set", "image.start.kind=warm"],
        ["--set", "objectives=[{kind: saturating}, {kind: repulsion, limit: -1, memory: 12}]"],
    ],
    ids=["warm", "kept away"],
)
def test_batches_that_look_back_go_on_with_the_same_pool(looks_back, run, tmp_path, monkeypatch):
    command = [*SINGLE, *looks_back, "--images", "32"]
    assert run(*command, "--output", tmp_path / "whole").code == 0
    assert run(*SINGLE, "--images", "32", "--output", tmp_path / "plain").code == 0
    first, plain = shards(tmp_path / "whole"), shards(tmp_path / "plain")
    assert all(first[f"00000{batch}.safetensors"] != plain[f"00000{batch}.safetensors"] for batch in (1, 2, 3))
    monkeypatch.setenv("MISFORTUNE", "term:0:16")
    assert run(*command, "--output", tmp_path / "out").code == 0
    monkeypatch.delenv("MISFORTUNE")
    assert 0 < len(shards(tmp_path / "out")) < 4
    assert run(*command, "--output", tmp_path / "out", "--resume").code == 0
    check_same(tmp_path / "out", tmp_path / "whole")


def test_what_batches_look_back_at(run, tmp_path, monkeypatch):
    """The last stored images before each batch, as many as the start remembers, whether or not it was resumed."""
    seen = {}

    def recorded(plan, ensemble, context, trial, earlier=None):
        seen[trial] = earlier
        return build_inversion(plan, ensemble, context, trial, earlier)

    monkeypatch.setattr(dataset, "build_inversion", recorded)
    monkeypatch.setattr(Warm, "memory", 12)
    command = [*SINGLE, "--set", "image.start.kind=warm", "--output", tmp_path, "--resume", "--images"]
    for images in ("16", "28"):
        assert run(*command, images).code == 0
    data = GeneratedImages(tmp_path)
    stored = data.labelled().images.float() / 255
    assert seen[0] is None and [*seen] == [0, 1, 2, 3]
    for batch in (1, 2, 3):
        last = slice(max(0, 8 * batch - 12), 8 * batch)
        assert torch.equal(seen[batch][0], stored[last]) and torch.equal(seen[batch][1], data.targets[last])


class Shown(SilentProgress):
    """Which batch of how many was shown at each step that was recorded."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, float, float]] = []

    def step(self, step, values=None):
        if values:
            self.batches.append((step, values["batch"], values["of"]))


def test_progress_says_which_batch(run, tmp_path):
    assert run(*SINGLE, "--images", "8", "--output", tmp_path).code == 0
    more, shown = dataset_job(None, {"device": "cpu"}, (), tmp_path, 24, resume=True), Shown()
    more.check(1)
    more.run(0.0, shown)
    assert {(batch, of) for _, batch, of in shown.batches} == {(2, 3), (3, 3)}
    assert all(step // 3 + 1 == batch for step, batch, _ in shown.batches)


def test_while_it_grows_it_is_not_finished(run, tmp_path, monkeypatch):
    command = [*SINGLE, "--iterations", "6", "--output", tmp_path, "--images"]
    assert run(*command, "8").code == 0
    monkeypatch.setenv("MISFORTUNE", "term:0:2")
    assert "stopped at step" in run(*command, "16", "--resume").errors[0]
    assert not (tmp_path / "manifest.json").exists() and len(shards(tmp_path)) == 1
    monkeypatch.delenv("MISFORTUNE")
    assert run(*PLUGIN_DATASET, "--resume", "--output", tmp_path).code == 0  # it knows that 16 were asked for
    assert len(GeneratedImages(tmp_path)) == 16


def test_two_ranks_and_two_replicas(run, tmp_path):
    """A rank of the second replica is killed, then all go on: the shards are those of one process."""
    command = [*COMMAND, "--images", "28", "--reproducible", "ranks"]
    assert run(*command, "--output", tmp_path / "one").code == 0
    both = ["--nproc", "4", "--replicas", "2", "--output", tmp_path / "both"]
    killed = end(start(*command, *both, MISFORTUNE="kill:3:7"))
    assert killed.code == 1 and not (tmp_path / "both" / "manifest.json").exists(), killed.errors
    assert "Traceback" not in "".join(killed.errors)
    again = end(start(*command, *both, "--resume"))
    assert again.code == 0, again.errors
    assert shards(tmp_path / "both") == shards(tmp_path / "one") and len(shards(tmp_path / "one")) == 4
    first, second = (manifest(tmp_path / name) for name in ("both", "one"))
    assert "torchrun --nproc-per-node 4 invert.py dataset" in first.pop("command") and second.pop("command")
    assert first == second


def test_a_full_disk_is_told_and_costs_a_batch(run, tmp_path):
    """A limit that no shard fits under, while what is written before does."""
    command = ["dataset", *ONE, "--iterations", "2", "--set", "image.batch_size=60", "--images", "120"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "invert.py"), *command, "--output", str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    ended = end(process)
    assert ended.code == 1 and len(told(ended)) == 1 and "File too large" in told(ended)[0], ended.errors
    assert shards(tmp_path) == {}
    assert run(*command, "--output", tmp_path, "--resume").code == 0
    assert len(GeneratedImages(tmp_path, verify=True)) == 120


# ---- what is refused, in one line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--images", "0"], "images: must be at least 1, not 0"),
        ([], "images: say how many the dataset is to have, with --images N"),
        (["--images", "8", "--replicas", "2", "--nproc", "2"], "8 images are 1 batch of 8, fewer than 2 replicas"),
        (["--images", "8", "--set", "image.start.kind=warm"], "goes back to the batches before, and 8 images are 1"),
        (["--images", "8", "--balance", "star"], "balance: 'star' is not class=share"),
        (["--images", "8", "--balance", "star=1,star=2"], "each class once"),
        (["--images", "8", "--balance", "star=1..2"], "write it as cat=3,dog=1"),
        (["--images", "8", "--balance", "star=0"], "targets.star: must be positive, got 0"),
        (["--images", "8", "--balance", "stair=1"], "no class is called 'stair'; did you mean 'star'?"),
        (["--images", "8", "--balance", "star=1", "--targets", "0"], "leave --targets out"),
        (["--images", "8", "--timed"], "--timed goes with --dry-run"),
        (["--images", "8", "--nproc", "0"], "--nproc must be at least 1"),
        (["--images", "8", "--trials", "2"], "unrecognized arguments: --trials 2"),
        (["--images", "8", "--export", "there"], "makes none; leave --images out"),
        (["--images", "8", "--models", "tiny_a@random", "tiny_renamed@random"], "have different classes"),
        (
            ["--images", "8", "--models", "tiny_renamed@random", *TWO_SPACES[3:]],
            "a dataset has every teacher's logits of all 3 classes of tiny_a, and 1 are mapped; map all of them",
        ),
    ],
)
def test_mistakes(arguments, words, run, tmp_path):
    assert words in one_line(run(*SINGLE, *arguments, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_name_may_hold_commas(run, tmp_path):
    assert "called 'tench, Tinca'" in one_line(
        run(*SINGLE, "--images", "8", "--balance", "tench, Tinca=2, star=1", "--output", tmp_path)
    )


def test_another_recipe_or_other_weights_are_refused(run, tmp_path):
    command = [*SINGLE, "--images", "8", "--output", tmp_path]
    assert run(*command).code == 0
    before = tree(tmp_path)
    other = run(*command, "--resume", "--images", "16", "--seed", "1", "--set", "optimizer.lr=0.01")
    assert "dataset that differs in seed, optimizer.lr; pass overwrite (--overwrite)" in one_line(other)
    balance = run(*command, "--resume", "--images", "16", "--balance", "star=1,circle=2")
    assert "differs in targets" in one_line(balance)
    assert tree(tmp_path) == before
    begun = json.loads(before["begun.json"]) | {"weights": {"tiny_a": "0" * 64}}
    (tmp_path / "begun.json").write_text(json.dumps(begun))
    weights = run(*command, "--resume", "--images", "16")
    assert (
        "weights, statistics, input size, mean or std of tiny_a are not those that the dataset began with"
        in one_line(weights)
    )


def test_a_plugins_network_that_was_changed_is_refused(run, tmp_path):
    """Random weights have no file by which they would be known."""
    plugin = tmp_path / "own.py"
    text = """from torch import nn
from models import ModelCard, register_model
@register_model(ModelCard("own_net", "own", 8, 3, (0.5,) * 3, (0.5,) * 3))
def own(num_classes: int = 3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes)).apply(
        lambda part: nn.init.constant_(part.bias, BIAS) if isinstance(part, nn.Linear) else None
    )
"""
    plugin.write_text(text.replace("BIAS", "0.0"))
    single = ["--plugin", plugin, "--models", "own_net@random", "--iterations", "3", "--device", "cpu"]
    assert run("dataset", *single, "--images", "8", "--output", tmp_path / "set").code == 0
    assert run(*single, "--output", tmp_path / "run").code == 0
    from models._table import TABLE

    del TABLE["own_net"]
    plugin.write_text(text.replace("BIAS", "0.5"))
    refused = run("dataset", "--plugin", plugin, "--output", tmp_path / "set", "--resume", "--images", "16")
    assert (
        "weights, statistics, input size, mean or std of own_net are not those that the dataset began with"
        in one_line(refused)
    )
    refused = run("--plugin", plugin, "--output", tmp_path / "run", "--resume", "--iterations", "6")
    assert "weights, statistics, input size, mean or std of own_net are not those that the run began with" in one_line(
        refused
    )


def test_other_versions_are_told(run, tmp_path):
    command = [*SINGLE, "--output", tmp_path, "--images"]
    assert run(*command, "8").code == 0
    begun = json.loads((tmp_path / "begun.json").read_text())
    begun["versions"]["torch"], begun["ranks"] = "1.0", 3
    (tmp_path / "begun.json").write_text(json.dumps(begun))
    ended = run(*command, "16", "--resume")
    assert ended.code == 0 and "began with other versions" in ended.output and "torch 1.0 -> " in ended.output
    assert "began on 3 ranks a batch and goes on on 1" in ended.output


def test_folders_of_others(run, tmp_path):
    """Nothing that is not a dataset's is replaced, and nothing joins one."""
    command = [*SINGLE, "--images", "8"]
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in one_line(run(*command, "--output", tmp_path / "file"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "recipe.yaml").write_text("mine")
    notes = [*command, "--output", tmp_path / "notes"]
    assert "is not empty" in one_line(run(*notes))
    assert "holds other files and no dataset" in one_line(run(*notes, "--resume"))
    assert "recipe.yaml is no dataset's, and is not replaced" in one_line(run(*notes, "--overwrite"))
    assert (tmp_path / "notes" / "recipe.yaml").read_text() == "mine"
    assert "holds no dataset to go on with" in one_line(
        run(*PLUGIN_DATASET, "--images", "8", "--resume", "--output", tmp_path / "none")
    )
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "shards").symlink_to(tmp_path / "notes")
    for how in ("--overwrite", "--resume"):
        assert "is a link; remove it yourself" in one_line(run(*command, how, "--output", tmp_path / "linked"))
    assert "holds no dataset" in one_line(run("dataset", "--output", tmp_path / "notes", "--export", tmp_path / "e"))


def test_a_run_replaces_no_dataset(whole, run):
    before = tree(whole)
    for how in ("--overwrite", "--resume"):
        assert "holds a dataset, which a run does not" in one_line(run(*COMMAND[1:], how, "--output", whole))
    assert tree(whole) == before


def test_what_another_made_meanwhile_is_not_replaced(run, tmp_path):
    """Between the check and the lock."""
    late = dataset_job({"teachers": [{"model": "tiny_a@random"}]}, {"device": "cpu"}, (), tmp_path, 3)
    late.check(1)
    assert run(*SINGLE, "--images", "8", "--output", tmp_path).code == 0
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="output: "):
        late.run(0.0, SilentProgress())
    assert tree(tmp_path) == before


def test_overwrite_replaces_a_dataset_and_nothing_else(whole, run, tmp_path):
    assert run(*SINGLE, "--images", "40", "--seed", "5", "--output", tmp_path).code == 0
    (tmp_path / "mine.txt").touch()
    assert run(*COMMAND, "--images", "20", "--overwrite", "--output", tmp_path).code == 0
    (tmp_path / "mine.txt").unlink()
    check_same(tmp_path, whole)


@pytest.mark.parametrize("left", ["begun.json.tmp", "begun.json"])
def test_one_that_was_killed_before_it_began(left, whole, run, tmp_path):
    (tmp_path / left).write_bytes((whole / "begun.json").read_bytes())
    assert run(*COMMAND, "--images", "20", "--output", tmp_path, "--resume").code == 0
    (tmp_path / "begun.json.tmp").unlink(missing_ok=True)
    check_same(tmp_path, whole)


@pytest.mark.parametrize("left", [b"", b'{"file": "0000'])
def test_one_that_was_killed_before_its_first_row(left, whole, run, tmp_path):
    assert run(*COMMAND, "--images", "20", "--output", tmp_path).code == 0
    for file in sorted((tmp_path / "shards").iterdir())[1:]:
        file.unlink()
    (tmp_path / "batches.jsonl").write_bytes(left)
    for name in ("manifest.json", "cost.json", "grid.png"):
        (tmp_path / name).unlink()
    assert run(*COMMAND, "--images", "20", "--output", tmp_path, "--resume").code == 0
    check_same(tmp_path, whole)


def test_shards_without_their_list_are_not_removed(run, tmp_path):
    assert run(*SINGLE, "--images", "8", "--output", tmp_path).code == 0
    (tmp_path / "batches.jsonl").unlink()
    ended = run(*SINGLE, "--images", "8", "--output", tmp_path, "--resume")
    assert "batches.jsonl, which lists the shards, is gone or damaged" in one_line(ended)
    assert len(shards(tmp_path)) == 1


def test_a_damaged_manifest_is_made_again(whole, run, tmp_path):
    command = [*COMMAND, "--images", "20", "--output", tmp_path]
    assert run(*command).code == 0
    (tmp_path / "manifest.json").write_text("{")
    assert run(*command, "--resume").code == 0
    check_same(tmp_path, whole)


def test_a_damaged_recipe_is_told(run, tmp_path):
    assert run(*SINGLE, "--images", "8", "--output", tmp_path).code == 0
    (tmp_path / "recipe.yaml").write_text("teachers: 3\n")
    ended = run(*SINGLE, "--images", "16", "--output", tmp_path, "--resume")
    assert "holds a dataset that cannot be gone on with (teachers: expected" in one_line(ended)
