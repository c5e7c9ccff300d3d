"""`invert.py prune`: a narrower network that loads, resumes and says what it lost; and every mistake in a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from made_datasets import write_dataset
from torch import nn

from ensemble import cli
from ensemble.machine.rng import generator
from ensemble.training.cut import Cut, cut
from ensemble.training.pool import read_pool
from ensemble.training.reading import inputs_of
from ensemble.training.weights import save_weights
from models import create_model
from models.cifar import CIFAR10_CLASSES
from models.pruned import narrow

NETWORKS = ["resnet20_cifar", "vgg16_bn_slim_cifar", "wrn16_2_cifar", "mobilenetv2_slim_cifar"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of noise, each of the class that ResNet-20 reads in it."""
    net, card = create_model("resnet20_cifar")
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=generator(0, "noise"), dtype=torch.uint8)
    with torch.no_grad():
        logits = net(inputs_of(images, card, torch.device("cpu")))
    folder = tmp_path_factory.mktemp("made") / "set"
    models = {"first": {"model": "resnet20_cifar", "sha256": None}}
    return write_dataset(folder, images, logits.argmax(1), CIFAR10_CLASSES, {"first": logits}, models)


def line(dataset: Path, out: Path, *more: str, model: str = "resnet20_cifar") -> list[str]:
    words = ["prune", "--model", model, "--dataset", str(dataset), "--flops", "0.5", "--epochs", "2"]
    small = ["--set", "schedule.batch_size=20", "--set", "schedule.precision=fp32", "--device", "cpu"]
    small += ["--set", "prune.images=10"]
    return [*words, *small, "--output", str(out), *more]


def multiplications(net: nn.Module) -> int:
    """Of convolutions and linear layers for one image of 32 x 32."""
    counted = 0

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal counted
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        counted += weight[0].numel() * out.numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return counted


@pytest.mark.parametrize(
    ("model", "importance"),
    [*((name, "magnitude") for name in NETWORKS), ("resnet20_cifar", "taylor"), ("resnet20_cifar", "bn_scale")],
)
def test_what_is_left_is_as_small_as_asked_and_loads_again(
    model: str, importance: str, dataset: Path, tmp_path: Path
) -> None:
    net, card = create_model(model)
    whole = multiplications(net)
    rule = Cut(flops=0.6, importance=importance, images=10)  # type: ignore[arg-type]
    found = cut(net, card, read_pool([str(dataset)]), rule, 0, torch.device("cpu"))
    assert 0.45 < multiplications(found.net) / whole <= 0.61
    assert found.said()["parameters"]["after"] == sum(p.numel() for p in found.net.parameters())
    save_weights(found.net, tmp_path / "net.safetensors", card)
    again, _ = create_model(f"{model}@{tmp_path / 'net.safetensors'}")
    view = torch.randn(3, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        torch.testing.assert_close(again(view), found.net.eval()(view), rtol=1e-5, atol=1e-5)
    for module in again.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)


class Odd(nn.Module):
    """A layer between two convolutions whose tensors are as many as there are channels, and a classifier."""

    def __init__(self, between: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.between = between or nn.Identity()
        self.gamma = nn.Parameter(torch.rand(1, 16, 1, 1)) if between is None else None
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) if self.gamma is None else self.gamma * self.first(x)
        x = self.second(self.between(x).relu()).relu()
        return self.head(x).mean((2, 3)) if isinstance(self.head, nn.Conv2d) else self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "head"),
    [
        (lambda: nn.GroupNorm(4, 16), lambda: nn.Linear(16, 10)),
        (lambda: nn.PReLU(16), lambda: nn.Linear(16, 10)),
        (lambda: None, lambda: nn.Linear(16, 10)),
        (lambda: nn.BatchNorm2d(16), lambda: nn.Conv2d(16, 10, 1)),
    ],
    ids=["group norm", "prelu", "scale", "convolution at the end"],
)
def test_what_is_left_of_other_layers_loads_again(between, head, dataset: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net, blank = (Odd(between(), head()) for _ in range(2))
    card = create_model("resnet20_cifar")[1]
    rule = Cut(flops=0.6, images=10, importance="magnitude")
    left = cut(net, card, read_pool([str(dataset)]), rule, 0, torch.device("cpu")).net.eval()
    narrow(blank, left.state_dict(), "test")
    blank.load_state_dict(left.state_dict())
    view = torch.randn(4, 3, 32, 32, generator=generator(2))
    with torch.no_grad():
        assert left(view).shape == (4, 10)
        torch.testing.assert_close(blank.eval()(view), left(view))


def test_an_importance_that_tells_nothing_apart_is_told(dataset: Path) -> None:
    card = create_model("resnet20_cifar")[1]
    rule = Cut(flops=0.6, images=10, importance="bn_scale")
    with pytest.raises(ValueError, match="bn_scale takes no channels from resnet20_cifar: none can go"):
        cut(Odd(nn.PReLU(16), nn.Linear(16, 10)), card, read_pool([str(dataset)]), rule, 0, torch.device("cpu"))


def test_channels_that_say_nothing_go_first(dataset: Path) -> None:
    """Half of a layer's channels are cut off from the rest: `taylor` takes these, and the logits do not change."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    torch.manual_seed(0)
    net.append(nn.Linear(16, 10))
    with torch.no_grad():
        net[2].weight[:, 8:] = 0  # type: ignore[index, operator]
        net[6].weight[:, 8:] = 0  # type: ignore[index, operator]
    card = create_model("resnet20_cifar")[1]
    view = torch.randn(4, 3, 32, 32, generator=generator(2))
    with torch.no_grad():
        before = net(view)
    found = cut(net, card, read_pool([str(dataset)]), Cut(flops=0.45, images=10), 0, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(found.net(view), before, rtol=1e-4, atol=1e-5)


def test_the_command_prunes_teaches_and_writes(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(line(dataset, tmp_path / "out")) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["pruned"]["flops"] <= 0.5 and summary["teachers"] == ["resnet20_cifar"]
    assert f"{summary['pruned']['flops']:.1%} of the multiplications" in told and "no real images were read" in told
    net, _ = create_model(f"resnet20_cifar@{tmp_path / 'out/weights.safetensors'}")
    assert sum(p.numel() for p in net.parameters()) == summary["pruned"]["parameters"]["after"]
    # it is a teacher as any other
    run = ["--models", f"resnet20_cifar@{tmp_path / 'out/weights.safetensors'}", "--iterations", "2", "--targets", "0"]
    assert cli.main([*run, "--device", "cpu", "--output", str(tmp_path / "images")]) == 0


def test_a_resumed_run_equals_an_uninterrupted_one(dataset: Path, tmp_path: Path, monkeypatch) -> None:
    import ensemble.training.loop as loop

    assert cli.main(line(dataset, tmp_path / "whole")) == 0

    def broken(*args: object, **kwargs: object) -> float:
        raise KeyboardInterrupt

    kept, calls = loop.evaluate, []

    def once(*args: object, **kwargs: object) -> float:
        calls.append(1)
        return kept(*args, **kwargs) if len(calls) == 1 else broken()  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "evaluate", once)
    assert cli.main(line(dataset, tmp_path / "cut")) != 0
    monkeypatch.setattr(loop, "evaluate", kept)
    assert cli.main(line(dataset, tmp_path / "cut", "--resume")) == 0
    whole, resumed = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == resumed
    said = [json.loads((tmp_path / name / "summary.json").read_text())["pruned"] for name in ("whole", "cut")]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "resnet20_cifar@random"], "--model: random weights have nothing to lose"),
        (["--flops", "1.5"], "prune.flops"),
        (["--set", "prune=null"], "leave --set prune out"),
        (["--flops", "0.001"], "of its multiplications with a tenth of each layer left; ask for more"),
        (["--dataset", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(more: list[str], said: str, dataset: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(line(dataset, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out/recipe.yaml").exists()


def test_a_network_is_not_taught_by_its_namesake(tmp_path: Path, capsys) -> None:
    """The dataset's `resnet20_cifar` had other weights than those of the name alone."""
    images, targets = torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10
    models = {"resnet20_cifar": {"model": "resnet20_cifar@mine.safetensors", "sha256": None}}
    logits = {"resnet20_cifar": torch.zeros(20, 10)}
    made = write_dataset(tmp_path / "set", images, targets, CIFAR10_CLASSES, logits, models)
    assert cli.main(line(made, tmp_path / "out")) == 2
    error = capsys.readouterr().err.strip()
    assert "is what the dataset calls resnet20_cifar@mine.safetensors; name the network" in error
    assert error.endswith("as resnet20_cifar@cifar10") and len(error.splitlines()) == 1
    assert cli.main(line(made, tmp_path / "out", model="resnet20_cifar@cifar10")) == 0, capsys.readouterr().err


def test_without_the_library_a_line_says_how(dataset: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert cli.main(line(dataset, tmp_path / "out")) == 2
    assert "torch-pruning is not installed; pip install -e '.[prune]'" in capsys.readouterr().err


def test_files_of_other_shapes_are_refused() -> None:
    net, _ = create_model("resnet20_cifar")
    state = net.state_dict()
    with pytest.raises(ValueError, match="which pruning does not make of"):
        narrow(net, state | {"conv1.weight": F.pad(state["conv1.weight"], (0, 0, 0, 0, 0, 0, 0, 4))}, "file")
