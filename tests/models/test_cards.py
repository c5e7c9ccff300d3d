"""What is said of a card outside the table: YAML beside a weights file, options, and warnings where nobody says it."""

from __future__ import annotations

import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ensemble.training.weights import save_weights
from models import ModelCard, are_probabilities, check_reads, create_model, model_card, register_model, usable
from models._card import IMAGENET_MEAN, IMAGENET_STD
from models._table import undone_on_error

NET = "resnet20_cifar:width=0.25"
LETTERS = tuple("abcdefghij")
ALL = """
input_size: 48
mean: [0.1, 0.2, 0.3]
std: 0.5
class_names: [a, b, c, d, e, f, g, h, i, j]
label_space: letters
num_classes: 10
"""


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return create_model(f"{NET}@random")[0].state_dict()


@pytest.fixture
def file(state, tmp_path: Path) -> Path:
    """A plain state dict, which says nothing."""
    torch.save(state, tmp_path / "net.v1.pth")
    return tmp_path / "net.v1.pth"


@pytest.fixture
def table():
    """Takes back what a test registers."""
    with pytest.raises(InterruptedError), undone_on_error():
        yield
        raise InterruptedError


@pytest.fixture
def silence():
    """No warning may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- YAML beside the file ------------------------------------------------------------------------------


def test_yaml_card_beside_a_state_dict(file: Path, silence) -> None:
    (file.parent / "net.v1.yaml").write_text(ALL)
    (file.parent / "net.v1.pth.yaml").write_text("nonsense: 1")  # not read
    card = model_card(f"{NET}@{file}")
    assert (card.input_size, card.mean, card.std) == (48, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert (card.class_names, card.label_space, card.num_classes) == (LETTERS, "letters", 10)
    _, created = create_model(f"{NET}@{file}")
    assert replace(created, weights={}, default_weights=None) == card


def test_levels_hold_for_one_mean_std_and_input_size() -> None:
    assert model_card("resnet20_cifar").weights["cifar10"].levels
    for options in ("mean=0", "std=1", "input_size=64"):
        assert not model_card(f"resnet20_cifar:{options}").weights["cifar10"].levels
    assert model_card("resnet20_cifar:input_size=32").weights["cifar10"].levels


def test_class_names_without_a_label_space_clear_it(file: Path) -> None:
    file.with_suffix(".yaml").write_text("class_names: [a, b, c, d, e, f, g, h, i, j]")
    assert model_card(f"{NET}@{file}").label_space == ""
    file.with_suffix(".yaml").write_text("label_space: other")
    assert model_card(f"{NET}@{file}").class_names == ()


def test_options_win_over_yaml_over_metadata_over_the_table(state, tmp_path: Path, silence) -> None:
    metadata = {"mean": [0.1] * 3, "std": [0.1] * 3, "input_size": 10, "class_names": LETTERS, "label_space": "letters"}
    save_file(state, tmp_path / "net.safetensors", {"card": json.dumps(metadata)})
    (tmp_path / "net.yaml").write_text("std: 0.2\ninput_size: 20\nclass_names: [k, l, m, n, o, p, q, r, s, t]")
    _, card = create_model(f"{NET},input_size=30@{tmp_path}/net.safetensors")
    assert (card.mean, card.std, card.input_size) == ((0.1,) * 3, (0.2,) * 3, 30)
    assert card.class_names == tuple("klmnopqrst") and card.label_space == ""  # letters were the metadata's names
    assert card.family == "resnet"


def test_all_mistakes_of_a_yaml_card_in_one_line(file: Path) -> None:
    file.with_suffix(".yaml").write_text(
        "maen: 0.5\nmean: [1, 2]\nstd: [1, 1, 0]\ninput_size: 3.5\nclass_names: [cat, no]\nnum_classes: 7"
    )
    for read in (model_card, create_model):
        with pytest.raises(ValueError) as caught:
            read(f"{NET}@{file}")
        text = str(caught.value)
        assert "\n" not in text and text.startswith(f"{file.parent}/net.v1.yaml (the card of net.v1.pth): ")
        for part in (
            "unknown entry 'maen' (known: input_size, mean, std, class_names, label_space, num_classes)",
            "mean must be a number for each channel (3), or one for all, got [1, 2]",
            "std must be a positive number for each channel (3), or one for all, got [1, 1, 0]",
            "input_size must be a positive whole number, got 3.5",
            "class_names must be a list of names (YAML wants numbers, yes and no in quotes), got ['cat', False]",
            "num_classes is 7, resnet20_cifar has 10 (ask for resnet20_cifar:num_classes=7)",
        ):
            assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected entries such as"),
        ("- 1", r"expected entries such as .*, got \[1\]"),
        ("mean: [1, 2", r"net\.v1\.yaml, line 1: expected"),
        ("std: 1\nmean: 0\nmean: 1", "line 1: a key stands twice"),
        ("a: &a [1]\nb: *a", "line 2: .*aliases and tags are not allowed"),
        ("mean: !!python/object/apply:os.system ['true']", "line 1: .*aliases and tags are not allowed"),
        ("mean: !!timestamp x", "line 1: .*aliases and tags are not allowed"),
        ("mean: 2026-13-01", "cannot|can be read .month must be"),
        ("[" * 5000, "can be read"),
        ("std: true\nmean: .inf", "std must be .*, got True; mean must be .*, got inf"),
        ("class_names: [a, '']\nlabel_space: [x]", "class_names must be .*; label_space must be a name"),
        ("class_names: [a, b]", "2 class names for 10 classes .ask for resnet20_cifar:num_classes=2"),
        ("{class_names: [" + "long, " * 5000 + "1]}", "got .{80}…$"),
    ],
)
def test_malformed_yaml_cards(file: Path, text: str, message: str) -> None:
    file.with_suffix(".yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        model_card(f"{NET}@{file}")
    assert "\n" not in str(caught.value)


def test_yaml_card_that_is_not_text(file: Path) -> None:
    file.with_suffix(".yaml").write_bytes(b"mean: \xff\xfe\x80")
    with pytest.raises(ValueError, match="not a YAML file that can be read"):
        model_card(f"{NET}@{file}")


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["random", "FILE", "cifar10"])
def test_options_change_the_card_alone(file: Path, weights: str, silence) -> None:
    name = "resnet20_cifar" if weights == "cifar10" else NET
    at = f"@{file if weights == 'FILE' else weights}"
    separator = "," if ":" in name else ":"
    net, card = create_model(f"{name}{separator}mean=0.5/0.4/0.3,std=0.25,input_size=40{at}")
    assert (card.mean, card.std, card.input_size) == ((0.5, 0.4, 0.3), (0.25,) * 3, 40)
    assert card == replace(
        create_model(f"{name}{separator}mean=0,std=1{at}")[1], mean=card.mean, std=card.std, input_size=40
    )
    plain = create_model(f"{name}{separator}std=1,mean=-.5{at}")[0]
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True))


def test_class_names_from_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffcat\ntabby  dog \nFuß\n\n", encoding="utf-8")
    card = model_card(f"resnet20_cifar:num_classes=3,class_names={tmp_path}/names.txt@random")
    assert card.class_names == ("cat", "tabby  dog", "Fuß") and card.label_space == ""


def test_options_of_a_zoos_network_and_of_a_subnet() -> None:
    pytest.importorskip("torchvision")
    assert model_card("resnet50:mean=0.5").default_weights == "IMAGENET1K_V2"
    card = model_card("popup/resnet18:k=30,mean=0.5,std=0.5@random")
    assert (card.mean, card.std) == ((0.5,) * 3, (0.5,) * 3)


def test_of_one_channel_a_card_says_one_number(tmp_path: Path, table, silence) -> None:
    @register_model(ModelCard("grey", "test", 8, 2, mean=(0.5,), std=(0.25,)))
    def grey(num_classes: int = 2) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, num_classes))

    card = model_card("grey:mean=0.1,std=0.2@random")
    assert (card.mean, card.std) == ((0.1,), (0.2,))
    with pytest.raises(
        ValueError, match=r"mean must be a number for each channel \(1\), or one for all, got \[0.1, 0.2"
    ):
        model_card("grey:mean=0.1/0.2/0.3@random")
    net, _ = create_model("grey@random")
    save_weights(net, tmp_path / "net.safetensors", card)
    assert create_model(f"grey@{tmp_path}/net.safetensors")[1].mean == (0.1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("mean=0.5/0.5", r"options: mean must be a number for each channel \(3\), or one for all, got \[0.5, 0.5\]"),
        ("mean=0.5/x/1", r"mean must be a number for each channel \(3\), or one for all, got '0.5/x/1'"),
        ("mean=nan", "mean must be a number for each channel"),
        ("std=0.5/0/0.5", "std must be a positive number for each channel"),
        ("std=-1", "std must be a positive number for each channel"),
        ("input_size=1.5,std=0", "input_size must be a positive whole number, got '1.5'; std must be"),
        ("class_names=none.txt", "class_names: .*none.txt is not a file; give a text file"),
        ("class_names=empty.txt", "empty.txt, line 1: expected the name of a class"),
        ("class_names=gap.txt", "gap.txt, line 2: expected the name of a class"),
        ("class_names=bytes.txt", "bytes.txt is not UTF-8 text"),
        ("class_names=two.txt", "2 class names for 10 classes .ask for resnet20_cifar:num_classes=2"),
        ("label_space=x", "unknown option 'label_space'; its options: .*; for its card: input_size, mean, std"),
    ],
)
def test_mistakes_in_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("gap.txt").write_text("a\n\nb\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x80")
    Path("two.txt").write_text("a\nb")
    for weights in ("random", "cifar10"):
        with pytest.raises(ValueError, match=message) as caught:
            create_model(f"resnet20_cifar:{options}@{weights}")
        assert str(caught.value).startswith("resnet20_cifar")


def test_an_option_of_the_factory_wins(table) -> None:
    seen = []

    @register_model(ModelCard("own_mean", "test", 8, 10, mean=(0.1,) * 3, std=(0.2,) * 3))
    def own_mean(num_classes: int = 10, mean: float = 0.0) -> torch.nn.Module:
        seen.append(mean)
        return torch.nn.Linear(3, num_classes)

    _, card = create_model("own_mean:mean=0.7,std=0.9@random")
    assert seen == [0.7] and (card.mean, card.std) == ((0.1,) * 3, (0.9,) * 3)


# --- what nobody says ----------------------------------------------------------------------------------


def test_a_file_that_does_not_say_its_mean_and_std_warns_once(file: Path) -> None:
    with pytest.warns(UserWarning) as caught:
        for _ in range(2):
            _, card = create_model(f"{NET}@{file}")
    (warning,) = caught
    assert str(warning.message) == (
        f"{file} does not say its mean and std; assumed from resnet20_cifar: mean 0.485/0.456/0.406, std"
        f" 0.229/0.224/0.225 (give them as resnet20_cifar:mean=..,std=..@FILE or in {file.parent}/net.v1.yaml)"
    )
    assert (card.mean, card.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_warning_names_only_what_is_missing(file: Path) -> None:
    file.with_suffix(".yaml").write_text("mean: 0.5")
    with pytest.warns(UserWarning, match="does not say its std; assumed from resnet20_cifar: std 0.229") as caught:
        create_model(f"{NET}@{file}")
    assert len(caught) == 1


def test_published_files_of_a_zoos_network_and_of_a_subnet_warn(tmp_path: Path) -> None:
    zoo = pytest.importorskip("torchvision.models")
    torch.save(zoo.squeezenet1_1().state_dict(), tmp_path / "net.pth")
    with pytest.warns(UserWarning, match=r"net\.pth does not say .* from squeezenet1_1: mean 0\.485"):
        create_model(f"squeezenet1_1@{tmp_path}/net.pth")


def test_nothing_warns_where_mean_and_std_are_known_or_of_no_matter(file: Path, state, silence) -> None:
    create_model("resnet20_cifar")
    create_model("resnet20_cifar@random")
    create_model(f"{NET},mean=0.5,std=0.5@{file}")
    model_card(f"{NET}@{file}")  # only whoever loads is told
    save_file(state, file.with_suffix(".safetensors"), {"card": json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1]})})
    create_model(f"{NET}@{file.with_suffix('.safetensors')}")


def _register(name: str, **said: tuple[float, ...]) -> None:
    @register_model(ModelCard(name, "test", 8, 10, **said))
    def linear(num_classes: int = 10) -> torch.nn.Module:
        return torch.nn.Linear(3, num_classes)


def test_a_users_card_that_does_not_say_its_mean_and_std_warns_once(table, tmp_path: Path) -> None:
    _register("unsaid")
    torch.save(torch.nn.Linear(3, 10).state_dict(), tmp_path / "net.pth")
    with pytest.warns(UserWarning) as caught:
        create_model("unsaid@random")
        _, card = create_model("unsaid@random")
        create_model(f"unsaid@{tmp_path}/net.pth")
    (warning,) = caught
    assert str(warning.message) == (
        "unsaid's card does not say its mean and std; ImageNet's are assumed"
        " (say them on the card, or as unsaid:mean=..,std=..)"
    )
    assert (card.mean, card.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_users_card_that_says_them_holds_for_a_users_file(table, tmp_path: Path, silence) -> None:
    _register("said", mean=IMAGENET_MEAN, std=(0.2, 0.2, 0.2))
    torch.save(torch.nn.Linear(3, 10).state_dict(), tmp_path / "net.pth")
    _, card = create_model(f"said@{tmp_path}/net.pth")
    assert (card.mean, card.std) == (IMAGENET_MEAN, (0.2, 0.2, 0.2))


def test_copies_of_a_card_remember_what_was_assumed() -> None:
    card = replace(ModelCard("net", "test", 8, 4, std=(1.0, 1.0, 1.0)), input_size=9)
    assert card.assumed == {"mean": IMAGENET_MEAN}
    assert not replace(card, mean=IMAGENET_MEAN).assumed


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"input_size": (32, 48)}, r"input_size is the side of a square in pixels, not \(32, 48\)"),
        ({"input_size": 32.0}, "input_size is the side"),
        ({"input_size": 0}, "input_size is the side"),
        ({"mean": (123.7, 116.3, 103.5)}, "divide mean and std by 255"),
        ({"mean": (float("nan"),) * 3}, "need a finite number a channel"),
        ({"std": (float("inf"),) * 3}, "need a finite number a channel"),
        ({"mean": 0.5}, "mean is a list, not 0.5"),
        ({"class_names": "ab"}, "class_names is a list, not 'ab'"),
        ({"class_names": range(3), "num_classes": 3}, "class_names are strings, and 0 is none; put them in quotes"),
        ({"num_classes": 2.5}, "num_classes is how many logits there are, not 2.5"),
        ({"num_classes": -1}, "num_classes is how many"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelCard("net", "test", **{"input_size": 32, "num_classes": 2, **fields})


def lazy(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))


@pytest.mark.usefixtures("table")
def test_lazy_layers_take_their_shapes_and_then_a_file(tmp_path: Path) -> None:
    register_model(ModelCard("lazy_net", "test", 8, 10, (0.5,) * 3, (0.5,) * 3))(lazy)
    net, _ = create_model("lazy_net@random")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    again, _ = create_model(f"lazy_net@{tmp_path / 'net.pth'}")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), again(x))


@pytest.mark.usefixtures("table")
def test_of_a_compiled_network_what_was_compiled_is_taken() -> None:
    card = ModelCard("compiled_net", "test", 8, 10, (0.5,) * 3, (0.5,) * 3)
    register_model(card)(lambda num_classes=10: torch.compile(plain(num_classes)))
    net, _ = create_model("compiled_net@random")
    assert type(net) is nn.Sequential


def quantised(num_classes: int = 10) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(plain(num_classes), {nn.Linear}, dtype=torch.qint8)


def test_a_network_that_could_be_quantised_and_is_not_is_taken() -> None:
    net = nn.Sequential(plain())
    net.add = torch.ao.nn.quantized.FloatFunctional()
    assert usable("net", net) is net


def test_a_mask_of_minus_infinity_is_no_damage() -> None:
    net = holding("conv.weight", 0.0)
    assert usable("net", net) is net


def test_a_sparse_weight_is_taken() -> None:
    net = plain()
    net[1].weight = nn.Parameter(net[1].weight.detach().to_sparse())
    assert usable("net", net) is net


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_told_from_logits(classes: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, classes, generator=rng)
    assert are_probabilities(logits.softmax(1).to(dtype))
    zeros, rectified = torch.zeros(64, classes), logits.relu() / classes
    for values in (logits, zeros, rectified, logits.softmax(1) * 1.05, torch.tensor([[0.0, 1.0]]).expand(4, 2)):
        assert not are_probabilities(values.to(dtype))


def fails(num_classes: int = 10) -> nn.Module:
    raise RuntimeError("no licence")


def holding(key: str, value: float) -> nn.Module:
    """A network with this value among the tensor's, and a mask of -inf."""
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4), flat=nn.Flatten()))
    net.register_buffer("mask", torch.full((2, 2), -math.inf))
    net.state_dict()[key].view(-1)[0] = value
    return net


def plain(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("name", "factory", "told"),
    [
        ("failing_net", fails, "failing_net: the network cannot be made: no licence"),
        ("scripted_net", lambda num_classes=10: torch.jit.script(plain(num_classes)), "it is TorchScript"),
        (
            "half_scripted_net",
            lambda num_classes=10: nn.Sequential(torch.jit.script(plain(num_classes))),
            "its layer 0 is TorchS",
        ),
        ("quantised_net", quantised, "its layer 1 is quantised"),
        ("no_net", lambda num_classes=10: None, "expected a torch.nn.Module, got NoneType"),
        ("unsettled_net", lambda num_classes=10: nn.Sequential(nn.LazyConv2d(4, 9)), "the network cannot be made"),
        ("meta_net", lambda num_classes=10: plain(num_classes).to("meta"), "on the device meta"),
        ("nan_net", lambda num_classes=10: holding("conv.weight", math.nan), r"conv.weight holds NaN values \(1 of 12"),
        ("hot_net", lambda num_classes=10: holding("bn.running_mean", math.inf), "bn.running_mean holds infinite"),
        (
            "odd_net",
            lambda num_classes=10: holding("bn.running_var", -1),
            "bn.running_var holds variances below 0",
        ),
    ],
)
def test_networks_that_cannot_be_used_are_told_in_one_line(
    name: str, factory: Callable[..., nn.Module], told: str
) -> None:
    register_model(ModelCard(name, "test", 8, 10, (0.5,) * 3, (0.5,) * 3))(factory)
    with pytest.raises(ValueError, match=told):
        create_model(f"{name}@random")


def test_a_judge_that_takes_each_batchs_statistics_is_told() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 10)
    )
    card = ModelCard("net", "test", 8, 10, (0.5,) * 3, (0.5,) * 3)
    with pytest.warns(UserWarning, match="judge net: BatchNorm 1 keeps no statistics"):
        check_reads("judge net", net, card)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reads("judge net", net, card, learns=True)


def test_of_a_network_of_grey_images_it_is_said_what_its_card_lacks() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(ValueError, match="one mean and one std on its card"):
        check_reads("net", net, ModelCard("net", "test", 8, 10, (0.5,) * 3, (0.5,) * 3))
