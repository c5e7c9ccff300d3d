"""What CONTRIBUTING prints works as printed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ensemble.config.kinds import undone_on_error as kinds_undone
from ensemble.config.parsing import parse
from ensemble.image.generator import Generator
from models import ModelCard, create_model, load_plugin
from models._table import undone_on_error

ROOT = Path(__file__).resolve().parents[1]
CARD = ModelCard("net", "test", 8, 10, mean=(0.5,) * 3, std=(0.25,) * 3)


def block(title: str) -> str:
    """The Python block of one section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    (found,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return found


def test_add_a_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(block("Add a model"), encoding="utf-8")
    with pytest.raises(InterruptedError), undone_on_error():  # takes the registration back
        assert load_plugin(file) == ("tiny",)
        net, card = create_model("tiny:width=0.5@random")
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10) and card.num_classes == 10
        raise InterruptedError


def test_bring_weights_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site/my_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    tensors = {"1.weight": torch.rand(10, 192), "1.bias": torch.rand(10)}
    save_file(tensors, package / "tiny.safetensors")
    digest = hashlib.sha256((package / "tiny.safetensors").read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    file = tmp_path / "mine.py"
    file.write_text(block("Bring weights in an installed package").replace("SHA256", digest), encoding="utf-8")
    with pytest.raises(InterruptedError), undone_on_error():
        assert load_plugin(file) == ("tiny_packed",)
        assert torch.equal(create_model("tiny_packed")[0][1].weight, tensors["1.weight"])
        raise InterruptedError


def test_add_a_trained_generator(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(block("Add a trained generator"), encoding="utf-8")
    with pytest.raises(InterruptedError), kinds_undone():
        load_plugin(file)
        made = parse(Generator, {"pretrained": {"kind": "blobs"}})
        made.check(20)
        images = made.make(2, 20, card=CARD, dtype=torch.float32, device="cpu")
        images.randomize(0.85, torch.Generator().manual_seed(1))
        assert images().shape == (2, 3, 20, 20) and 0 <= images().min() < images().max() <= 1
        raise InterruptedError


@pytest.mark.parametrize(
    ("title", "kind"), [("Add an objective", "greyness"), ("Add a term of what teachers say", "consensus")]
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_objective_from_a_recipe(tmp_path: Path, title: str, kind: str, ranks: int) -> None:
    (tmp_path / "mine.py").write_text(block(title), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        "teachers: [{model: resnet20_cifar@random}, {model: wrn16_2_cifar@random}]\n"
        f"objectives: [{{kind: cross_entropy}}, {{kind: {kind}, weight: 0.25}}]\n"
        "stages: [{iterations: 2}]\ntargets: [0, 1]\nruntime: {precision: fp32, device: cpu}\n"
    )
    command = [sys.executable, str(ROOT / "invert.py"), "--plugin", "mine.py", "--recipe", "mine.yaml"]
    started = ["--nproc", "2"] if ranks == 2 else []
    done = subprocess.run([*command, *started, "--output", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"kind: {kind}" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert f'"ranks": {ranks}' in (tmp_path / "out" / "summary.json").read_text()


@pytest.mark.parametrize("title", ["Add an objective", "Add a term of what teachers say"])
def test_an_objective_from_python(title: str) -> None:
    from ensemble import invert

    with pytest.raises(InterruptedError), kinds_undone():
        names: dict[str, object] = {}
        exec(block(title), names)
        (term,) = [value for value in names.values() if getattr(value, "kind", "") in ("greyness", "consensus")]
        options = {"iterations": 2, "device": "cpu", "precision": "fp32", "progress": False}
        models = ["resnet20_cifar@random", "wrn16_2_cifar@random"]
        with pytest.warns(UserWarning):  # untrained networks miss their targets
            results = invert(models, targets=[0], terms=[term(weight=0.5)], **options)  # type: ignore[operator]
        assert results is not None and results.recipe.objectives[-1].weight == 0.5
        raise InterruptedError
