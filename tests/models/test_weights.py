"""Weights files: what can be read, what must fit, what is refused; foreign files on real images."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ensemble.training.weights import save_weights
from models import ModelCard, Weights, create_model, list_models, model_card
from models._bundled import FOLDER, read_bundled, with_bundled
from models._loading import read_card, read_weights, sha256

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("ENSEMBLE_SHARED", ROOT.parent / "shared")) / "data"
FOREIGN = DATA / "third_party" / "pytorch_resnet_cifar10"
pytestmark = pytest.mark.filterwarnings("ignore:.*does not say its mean and std")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A ResNet-20's weights that are not those of @random."""
    net, _ = create_model("resnet20_cifar@random")
    return {key: value + 0.5 if value.is_floating_point() else value for key, value in net.state_dict().items()}


def _same(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, state[k]) for k, v in net.state_dict().items() if not k.endswith("batches_tracked"))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_wrappings(state, tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    tensors = {prefix + key: value for key, value in state.items()}
    torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, tmp_path / "net.pt")
    net, card = create_model(f"resnet20_cifar@{tmp_path}/net.pt")
    assert _same(net, state)
    record = card.weights[card.default_weights]
    assert (record.source, record.file, record.sha256) == (
        "file",
        f"{tmp_path}/net.pt",
        sha256(tmp_path / "net.pt"),
    )


def test_a_file_says_of_which_network_it_is(tmp_path: Path) -> None:
    net, card = create_model("resnet32_cifar@random")
    save_weights(net, tmp_path / "net.safetensors", card)
    with pytest.raises(ValueError, match=r"net.safetensors \(which says that it is of resnet32_cifar\) does not fit"):
        create_model(f"resnet20_cifar@{tmp_path}/net.safetensors")
    assert _same(create_model(f"resnet32_cifar@{tmp_path}/net.safetensors")[0], net.state_dict())
    narrow, card = create_model("resnet20_cifar:width=0.5@random")
    save_weights(narrow, tmp_path / "net.safetensors", card, "resnet20_cifar:width=0.5@random")
    with pytest.raises(ValueError, match=r"\(which says that it is of resnet20_cifar:width=0\.5\) does not fit"):
        create_model(f"resnet20_cifar@{tmp_path}/net.safetensors")
    create_model(f"resnet20_cifar:width=0.5@{tmp_path}/net.safetensors")


def test_safetensors_in_half_precision_with_a_card(state, tmp_path: Path) -> None:
    half = {key: value.half() for key, value in state.items() if value.is_floating_point()}
    said = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "class_names": list("abcdefghij"), "num_classes": 10}
    said["input_size"] = 48
    save_file(half, tmp_path / "net.safetensors", {"card": json.dumps(said)})
    net, card = create_model(f"resnet20_cifar@{tmp_path}/net.safetensors")
    assert net.conv1.weight.dtype == torch.float32 and _same(net, {k: v.float() for k, v in half.items()})
    assert (card.mean, card.std, card.class_names) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), tuple("abcdefghij"))
    assert card.label_space == ""  # other classes than CIFAR-10's, and the file does not name them
    before = model_card(f"resnet20_cifar@{tmp_path}/net.safetensors")
    assert card.input_size == 48 and replace(card, weights=before.weights, default_weights="cifar10") == before


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"num_classes": 5}', "num_classes is 5, .* has 10 .ask for resnet20_cifar:num_classes=5"),
        ('{"mean": [1, 2]}', "mean must be a number for each channel .*, got .1, 2"),
        ('{"std": [1, 1, 0]}', "std must be a positive number for each channel"),
        ('{"std": [1, 1, NaN]}', "std must be a positive number for each channel"),
        ('{"class_names": "abc"}', "list of names"),
        ('{"class_names": ["a"]}', "1 class names for 10 classes .ask for resnet20_cifar:num_classes=1"),
        ('{"label_space": 3}', "label_space must be a name, got 3"),
        ('{"input_size": "32"}', "input_size must be a positive whole number, got '32'"),
        ('{"input_size": true}', "input_size must be a positive whole number, got True"),
        ('{"maen": [1, 1, 1]}', "unknown entry 'maen'"),
        ('{"maen": [1, 1, 1], "std": "x"}', "unknown entry 'maen' .*; std must be"),
    ],
)
def test_bad_cards_in_files(state, tmp_path: Path, card: str, message: str) -> None:
    save_file(state, tmp_path / "net.safetensors", {"card": card})
    for read in (create_model, model_card):
        with pytest.raises(ValueError, match=message):
            read(f"resnet20_cifar@{tmp_path}/net.safetensors")


def test_keys_that_do_not_fit(state, tmp_path: Path) -> None:
    wrong = {key: value for key, value in state.items() if not key.startswith("layer3.2.bn2")}
    wrong |= {"extra": torch.zeros(1), "bn1.bias": torch.zeros(3)}
    torch.save(wrong, tmp_path / "net.pth")
    with pytest.raises(ValueError) as caught:
        create_model(f"resnet20_cifar@{tmp_path}/net.pth")
    text = str(caught.value)
    assert "4 missing (layer3.2.bn2.weight, layer3.2.bn2.bias, layer3.2.bn2.running_mean, …)" in text
    assert "1 unexpected (extra)" in text and "1 of another shape (bn1.bias [3] for [16])" in text
    assert "num_classes" not in text and "\n" not in text


def test_missing_keys_alone_and_unexpected_keys_alone(state, tmp_path: Path) -> None:
    torch.save({key: value for key, value in state.items() if key != "bn1.bias"}, tmp_path / "less.pth")
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "more.pth")
    for name, message in (("less", "cifar: 1 missing"), ("more", "cifar: 1 unexpected")):
        with pytest.raises(ValueError, match=message):
            create_model(f"resnet20_cifar@{tmp_path}/{name}.pth")


def test_another_number_of_classes_suggests_the_option(state, tmp_path: Path) -> None:
    five = state | {"linear.weight": torch.zeros(5, 64), "linear.bias": torch.zeros(5)}
    torch.save(five, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="ask for resnet20_cifar:num_classes=5"):
        create_model(f"resnet20_cifar@{tmp_path}/net.pth")
    net, card = create_model(f"resnet20_cifar:num_classes=5@{tmp_path}/net.pth")
    assert _same(net, five) and card.num_classes == 5


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, save) -> None:
    marker = tmp_path / "executed"
    save({"state_dict": _Payload(marker)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="pickled code") as caught:
        create_model(f"resnet20_cifar@{tmp_path}/net.pth")
    assert not marker.exists() and "\n" not in str(caught.value)
    torch.load(tmp_path / "net.pth", weights_only=False) if save is torch.save else pickle.loads(
        (tmp_path / "net.pth").read_bytes()
    )
    assert marker.exists()  # so the file was dangerous


def test_a_pickled_module_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"needs pickled code to be read \(torch\.nn\.modules\.linear\.Linear\)"):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "does not exist"),
        ("net.pth", b"", "not a weights file"),
        ("net.pth", b"hello world, this is text", "not a weights file"),
        ("net.pth", b"<html>", "not a weights file"),
        ("net.pth", b"PK\x03\x04 broken archive", "not a weights file"),
        ("net.safetensors", b"", "not a safetensors file"),
        ("net.safetensors", b"hello world, this is text", "not a safetensors file"),
    ],
)
def test_no_weights_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        create_model(f"resnet20_cifar@{tmp_path}/{name}")
    assert "\n" not in str(caught.value)


def test_a_folder_for_a_weights_file_is_told_with_a_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; give a file in it$"):
        create_model(f"resnet20_cifar@{tmp_path}")
    for name in ("a.txt", "checkpoint.pt", "weights.safetensors"):  # as training leaves them
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"is a folder; give a file in it, such as {tmp_path}/weights.safetensors$"):
        create_model(f"resnet20_cifar@{tmp_path}")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}])
def test_no_state_dict(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(tmp_path / "net.pth")


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="no tensors"):
        read_weights(tmp_path / "net.safetensors")


# --- bundled weights -----------------------------------------------------------------------------------


def test_a_record_beside_a_file_is_the_default(state, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    record = {"file": "a.safetensors", "sha256": sha256(tmp_path / "a.safetensors"), "accuracy": 0.9}
    (tmp_path / "mine.json").write_text(json.dumps(record))
    bare = ModelCard("mine", "resnet", 32, 10, label_space="cifar10")
    card = with_bundled(bare, tmp_path)
    assert card.default_weights == "cifar10" and card.weights["cifar10"] == Weights(source="bundled", **record)
    weights = {key for key in state if not key.endswith("num_batches_tracked")}
    assert read_bundled(card.weights["cifar10"], tmp_path).tensors.keys() == weights
    assert with_bundled(ModelCard("other", "resnet", 32, 10), tmp_path).default_weights is None

    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        read_bundled(card.weights["cifar10"], tmp_path)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        read_bundled(card.weights["cifar10"], tmp_path)


@pytest.mark.parametrize("text", ["{", '{"file": "a"}', '{"file": "a", "sha256": "b", "sha": 1}', "[]"])
def test_broken_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match="not a record of weights"):
        with_bundled(ModelCard("mine", "resnet", 32, 10), tmp_path)


@pytest.mark.parametrize("name", [c.name for c in list_models("*_cifar") if c.default_weights])
def test_bundled_weights_are_for_what_their_card_says(name: str) -> None:
    card = model_card(name)
    says = read_card(FOLDER / f"{name}.safetensors")
    assert (tuple(says["mean"]), tuple(says["std"])) == (card.mean, card.std) and not card.assumed
    assert (tuple(says["class_names"]), says["label_space"]) == (card.class_names, card.label_space)


@pytest.mark.parametrize("name", [c.name for c in list_models("*_cifar") if c.default_weights] or [None])
def test_bundled_weights_load(name: str | None) -> None:
    if name is None:
        pytest.skip("no bundled weights")
    net, card = create_model(name)
    assert card.default_weights == "cifar10" and card.weights["cifar10"].source == "bundled"
    assert net(torch.rand(1, 3, 32, 32)).isfinite().all()


# --- foreign weights on real images --------------------------------------------------------------------


@pytest.fixture(scope="module")
def test_images():
    from ensemble.data.labelled import load_images

    archive = DATA / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip("CIFAR-10 archive not present")
    return load_images(archive, "test")


def _foreign(name: str) -> str:
    if not FOREIGN.is_dir():
        pytest.skip("third-party weights not present")
    (file,) = FOREIGN.glob(f"{name}-*.th")
    return f"{name}_cifar@{file}"


def _accuracy(net: nn.Module, card: ModelCard, images, step: int) -> float:
    """Share of every step-th image that `net` classifies right."""
    assert images.class_names == card.class_names
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.mean, card.std))
    batches = zip(images.images[::step].split(500), images.labels[::step].split(500), strict=True)
    with torch.inference_mode():
        right = sum(int((net((x / 255 - mean) / std).argmax(1) == y).sum()) for x, y in batches)
    return right / len(images.labels[::step])


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet56"])
def test_foreign_weights_load(name: str) -> None:
    net, card = create_model(_foreign(name))
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert card.weights[card.default_weights].source == "file"


def test_foreign_resnet20_classifies(test_images) -> None:
    """500 images; three standard errors of a share of 0.81 are 0.053."""
    assert _accuracy(*create_model(_foreign("resnet20")), test_images, 20) == pytest.approx(0.8103, abs=0.053)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.8103), ("resnet32", 0.8256), ("resnet56", 0.8320)])
def test_foreign_networks_classify_all_images(test_images, name: str, accuracy: float) -> None:
    assert _accuracy(*create_model(_foreign(name)), test_images, 1) == pytest.approx(accuracy, abs=0.001)
