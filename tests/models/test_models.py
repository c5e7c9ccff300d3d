"""Networks by name: the table, specifications, the zoos and plugins."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import models
from models import (
    ModelCard,
    ModelSpec,
    create_model,
    list_models,
    model_card,
    parse_spec,
    register_model,
    untrained_model,
)
from models import _plugins as plugins
from models._registry import _find
from models._table import TABLE, undone_on_error
from models.cifar import CIFAR10_CLASSES, CifarResNet, CifarWideResNet

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not say its mean and std")
AUXILIARY = {"inception_v3": 27_161_264 - 23_834_568}
"""Parameters of heads that run in training only; googlenet's are in no count of torchvision's."""
CIFAR = [card.name for card in list_models("*_cifar")]
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
LARGE = {"wrn28_10_cifar", "resnet110_cifar", "vgg19_bn_cifar", "resnext29_8x64d_cifar", "resnext29_16x64d_cifar"}
SMALL = [name for name in CIFAR if name not in LARGE]


@pytest.fixture
def table():
    """Takes back what a test registers."""
    try:
        with undone_on_error():
            yield
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


# --- specifications ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("resnet50", ModelSpec("resnet50", {}, "default")),
        ("resnet50@IMAGENET1K_V2", ModelSpec("resnet50", {}, "IMAGENET1K_V2")),
        (
            "a:width=0.25,num_classes=3@d/e@f:g,h.pth",
            ModelSpec("a", {"width": "0.25", "num_classes": "3"}, "d/e@f:g,h.pth"),
        ),
        ("timm/resnet18.a1_in1k", ModelSpec("timm/resnet18.a1_in1k", {}, "default")),
    ],
)
def test_parse_spec(text: str, spec: ModelSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize("text", ["", "@random", "a@", "a:", "a:width", "a:width=", "a:=2", "a:b=1,", "a b", ":w=1"])
def test_malformed_specs(text: str) -> None:
    with pytest.raises(ValueError, match="model "):
        parse_spec(text)


def test_option_given_twice() -> None:
    with pytest.raises(ValueError, match="given twice"):
        parse_spec("a:b=1,b=2")


def test_which_weights_are_paths() -> None:
    assert parse_spec("a@net.th").path == Path("net.th")
    assert parse_spec("a@dir/IMAGENET").path == Path("dir/IMAGENET")
    assert parse_spec("a@IMAGENET1K_V1").path is None


# --- the CIFAR networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_network(name: str) -> None:
    card = model_card(name)
    assert (card.input_size, card.num_classes, card.label_space) == (32, 10, "cifar10")
    assert card.class_names == CIFAR10_CLASSES and card.citation
    if name in SMALL:
        net, _ = create_model(f"{name}@random")
        logits = net(torch.rand(2, 3, 32, 32))
        assert logits.shape == (2, 10) and logits.isfinite().all()
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        assert all(t.dtype == torch.float32 for t in net.state_dict().values() if t.is_floating_point())


def test_registered_networks() -> None:
    expected = {f"resnet{d}_cifar" for d in (8, 14, 20, 32, 44, 56, 110)}
    expected |= {f"vgg{d}_bn_cifar" for d in (11, 13, 16, 19)}
    expected |= {"vgg16_bn_slim_cifar", "resnet20_popup_cifar", "resnet18_cifar", "resnet34_cifar", "resnet50_cifar"}
    expected |= {f"wrn{name}_cifar" for name in ("16_1", "16_2", "28_10", "40_1", "40_2")}
    expected |= {f"resnext29_{name}_cifar" for name in ("2x64d", "4x64d", "8x64d", "16x64d", "32x4d")}
    expected |= {"densenet121_cifar", "shufflenetv2_cifar", "mobilenetv2_cifar", "mobilenetv2_slim_cifar"}
    assert set(CIFAR) == expected


@pytest.mark.parametrize(
    ("build", "parameters", "tolerance"),
    [
        (lambda: CifarResNet(20), 269_722, 0),  # 0.27 M, He et al. 2016, table 6
        (lambda: CifarResNet(32), 464_154, 0),  # 0.46 M
        (lambda: CifarResNet(44), 0.66e6, 0.005e6),
        (lambda: CifarResNet(56), 0.85e6, 0.006e6),
        (lambda: CifarResNet(110), 1.7e6, 0.05e6),
        (lambda: CifarWideResNet(16, 2), 0.69e6, 0.005e6),
        (lambda: CifarWideResNet(40, 2), 2.2e6, 0.05e6),  # Zagoruyko & Komodakis 2016, table 4
        (lambda: CifarWideResNet(28, 10), 36.5e6, 0.05e6),
    ],
)
def test_published_parameter_counts(build, parameters: float, tolerance: float) -> None:
    with torch.device("meta"):
        net = build()
    assert abs(sum(p.numel() for p in net.parameters()) - parameters) <= tolerance


def test_slim_is_a_width() -> None:
    slim, wide = (
        create_model("vgg16_bn_slim_cifar@random")[0],
        create_model("vgg16_bn_cifar:width=0.25@random")[0],
    )
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (slim, wide)]
    assert shapes[0] == shapes[1]


def test_random_is_deterministic_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, card = create_model("resnet20_cifar@random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, _ = create_model("resnet20_cifar@random")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    other, _ = create_model("resnet32_cifar@random")
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert card.default_weights == "random" and card.weights["random"].source == "random"


def test_untrained_is_the_factory_after_its_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = CifarResNet(20, num_classes=3, width=0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    net, card = untrained_model("resnet20_cifar:num_classes=3,width=0.5@random", seed=5)
    assert torch.equal(torch.get_rng_state(), before) and card.num_classes == 3
    assert net.training and all(p.requires_grad for p in net.parameters())
    for value, wanted in zip(net.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, wanted)
    other, _ = untrained_model("resnet20_cifar:num_classes=3,width=0.5", seed=6)
    assert not torch.equal(net.conv1.weight, other.conv1.weight)


def test_untrained_subnet_has_free_scores_alone() -> None:
    net, _ = untrained_model("popup/resnet20_cifar:width=0.25,k=50@random", seed=0)
    free = {name.rpartition(".")[2] for name, p in net.named_parameters() if p.requires_grad}
    assert free == {"scores"}


def test_untrained_refuses_weights_and_networks_without_classifier() -> None:
    with pytest.raises(ValueError, match="resnet20_cifar@cifar10 is trained; ask for resnet20_cifar@random"):
        untrained_model("resnet20_cifar@cifar10", seed=0)
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"has no classifier; give one as .*:num_classes=N@random"):
        untrained_model("timm/convnext_tiny.dinov3_lvd1689m@random", seed=0)


def test_another_number_of_classes_clears_the_labels() -> None:
    net, card = create_model("wrn16_2_cifar:num_classes=7@random")
    assert (card.num_classes, card.class_names, card.label_space) == (7, (), "")
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    assert model_card("resnet50:num_classes=7").label_space == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet2_cifar", "did you mean .*resnet20_cifar.*.--list-models. shows .*--plugin FILE. adds one of your own"),
        ("resnet20_cifar:wdith=2@random", "unknown option 'wdith'; its options: num_classes, width"),
        ("resnet20_cifar:width=wide@random", "'width': expected a number"),
        ("resnet20_cifar:width=0@random", "width must lie in"),
        ("resnet20_cifar:num_classes=2.5@random", "expected a whole number"),
        ("resnet20_cifar:num_classes=0@random", "at least 1"),
        (
            "resnet110_cifar",
            "no default weights; give a file as resnet110_cifar@FILE.*resnet110_cifar@random",
        ),
        ("resnet110_cifar@tuned", "unknown weights 'tuned'; known: none"),
        ("resnet50:num_classes=3", "do not fit num_classes=3"),
        ("resnet50:num_classes=3@IMAGENET1K_V1", "do not fit the options"),
        ("resnet50@IMAGENET1K_V9", "known: IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm/resnet18.a9_in1k", "no weights 'a9_in1k'"),
        ("timm/resnet81", "did you mean .*timm/resnet"),
        ("timm/vit_base_patch16_sapiens2", "only square"),
        ("timm/resmlp_12_224.fb_dino@tuned", "known: fb_dino"),
    ],
)
def test_users_mistakes(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(spec)


# --- registration and plugins --------------------------------------------------------------------------

# The example of CONTRIBUTING.
PLUGIN = """
from torch import nn
from models import ModelCard, register_model

@register_model(ModelCard("tiny", family="tiny", input_size=32, num_classes=10))
def tiny(num_classes: int = 10, width: float = 1.0) -> nn.Module:
    channels = int(32 * width)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, 2), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes),
    )
"""


def test_plugin(table, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    assert models.load_plugin(file) == ("tiny",)
    assert models.load_plugin(file) == ("tiny",)  # run once
    net, card = create_model("tiny:width=0.5,num_classes=3@random")
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3) and net[0].out_channels == 16
    assert card.label_space == "" and "tiny" in [c.name for c in list_models("tiny")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import math\nx = 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("x = (\n", "line 1: SyntaxError"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        (PLUGIN.replace('"tiny",', '"resnet20_cifar",'), "line 5: ValueError: .*already registered"),
        (PLUGIN.replace("int = 10", "int"), "ValueError: tiny: option 'num_classes' needs a default"),
        (PLUGIN.replace("int = 10", "int = 5"), "num_classes is 10 on the card"),
        (PLUGIN.replace('"tiny",', '"a@b",'), "network name 'a@b'"),
        (PLUGIN + "\nboom", "NameError"),
    ],
)
def test_broken_plugins(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    for _ in range(2):  # a failed plugin leaves nothing behind
        with pytest.raises(ValueError, match=message):
            models.load_plugin(file)
    assert "tiny" not in [card.name for card in list_models("t?ny")]


OTHER_TABLE: dict[str, int] = {}
TWO_TABLES = (
    PLUGIN
    + """
import sys
for name in ("zeta", "alpha"):
    sys.modules[{test!r}].OTHER_TABLE[name] = 1
"""
)


@contextmanager
def other_undone():
    before, names = dict(OTHER_TABLE), set()
    try:
        yield names
    except BaseException:
        OTHER_TABLE.clear()
        OTHER_TABLE.update(before)
        raise
    names |= OTHER_TABLE.keys() - before.keys()


@pytest.fixture
def other_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugins, "_tables", list(plugins._tables))
    monkeypatch.setitem(OTHER_TABLE, "own", 0)
    models.add_plugin_table(other_undone)
    yield
    OTHER_TABLE.clear()


def test_plugin_that_fills_another_table_too(table, other_table, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TWO_TABLES.format(test=__name__))
    assert models.load_plugin(file) == ("tiny", "alpha", "zeta")
    assert models.load_plugin(file) == ("tiny", "alpha", "zeta") and set(OTHER_TABLE) == {"own", "alpha", "zeta"}


def test_failed_plugin_is_taken_back_from_all_tables(other_table, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(TWO_TABLES.format(test=__name__) + "\nboom")
    with pytest.raises(ValueError, match="NameError"):
        models.load_plugin(file)
    assert set(OTHER_TABLE) == {"own"} and not list_models("[t]iny")


def test_failed_entry_point_is_taken_back_from_all_tables(
    other_table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_nets.py").write_text(TWO_TABLES.format(test=__name__) + "\nboom")
    with monkeypatch.context() as context:
        _package(tmp_path, "broken_nets")
        context.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match=r"entry point 'mine'.*NameError"):
            models.load_entry_points()
    assert set(OTHER_TABLE) == {"own"} and not list_models("[t]iny")


def test_plugin_file_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        models.load_plugin(tmp_path / "none.py")
    (tmp_path / "net.txt").write_text("")
    with pytest.raises(ValueError, match=r"not a \.py"):
        models.load_plugin(tmp_path / "net.txt")


def _package(folder: Path, module: str) -> None:
    """An installed package's metadata with one entry point."""
    info = folder / "nets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ensemble_inversion.models]\nmine = {module}\n")


def test_entry_point(table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_mine.py").write_text(PLUGIN.replace('"tiny"', '"tiny_installed"', 1))
    _package(tmp_path, "nets_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_card("tiny_installed").input_size == 32


def test_broken_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "no_such_nets")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"entry point 'mine'.*no_such_nets"):
        model_card("resnet20_cifar")


def test_duplicate_name() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_model(ModelCard("resnet20_cifar", "x", 32, 10))


# --- the zoos ------------------------------------------------------------------------------------------


def test_importing_models_imports_no_zoo() -> None:
    code = (
        "import sys, models; models.create_model('resnet20_cifar@random');"
        "assert not {'timm', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _loaded_zoos(pattern: str) -> str:
    """Which of the zoos' modules are there after list_models(pattern) in a fresh process, and what it lists."""
    code = (
        f"import sys, models; cards = models.list_models({pattern!r});"
        "print([m for m in ('torchvision_zoo', 'timm_zoo') if f'models.{m}' in sys.modules], len(cards))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_no_zoo_is_imported_that_cannot_match() -> None:
    assert _loaded_zoos("popup/resnet20") == "[] 0"


def test_part_of_a_name() -> None:
    timm = pytest.importorskip("timm")
    zoo = pytest.importorskip("torchvision.models")
    every = [*CIFAR, *LITE, *zoo.list_models(module=zoo), *(f"timm/{name}" for name in timm.list_models())]
    for part in ("cifar", "resnet20_cifar", "resnet50", "resnet", "timm/resnet18", "mm/resnet18", "no_such"):
        assert {card.name for card in list_models(part)} == {name for name in every if part in name}, part
    assert [card.name for card in list_models("CIFAR")] == [card.name for card in list_models("cifar")]
    assert list_models("RESNET20_CIFA?") == [] and len(list_models("resnet20_cifa?")) == 1  # a shell pattern
    others = [name for name in TABLE if name not in CIFAR]  # what other tests' plugins left
    assert len(list_models()) == len(every) + len(others) == len(list_models(""))


def test_torchvision_cards() -> None:
    zoo = pytest.importorskip("torchvision.models")
    names = {card.name for card in list_models("[!t]*") if not card.name.endswith("_cifar")}
    assert names == {*LITE, *zoo.list_models(module=zoo)}
    card = model_card("resnet50")
    assert (card.input_size, card.num_classes, card.label_space) == (224, 1000, "imagenet1k")
    assert (card.default_weights, card.class_names[0]) == ("IMAGENET1K_V2", "tench")
    assert card.weights["IMAGENET1K_V1"].accuracy == pytest.approx(0.7613)
    assert model_card("efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    assert model_card("vit_b_16").input_size == 224
    assert model_card("vit_b_16@IMAGENET1K_SWAG_E2E_V1").input_size == 384
    assert list(model_card("vgg16").weights) == ["IMAGENET1K_V1"]  # the feature extractor's have no classifier


@pytest.mark.slow
def test_torchvision_networks_have_the_published_size() -> None:
    zoo = pytest.importorskip("torchvision.models")
    for name in zoo.list_models(module=zoo, exclude="regnet*"):  # regnets compute widths with tensors
        for tag in model_card(name).weights:
            entry = _find(ModelSpec(name, {}, tag))
            with torch.device("meta"):
                net = entry.factory(**entry.options)
            published = zoo.get_model_weights(name)[tag].meta["num_params"] - AUXILIARY.get(name, 0)
            assert sum(p.numel() for p in net.parameters()) == published, (name, tag)


def test_inception_normalises_as_transform_input_does() -> None:
    zoo = pytest.importorskip("torchvision.models")
    net, card = create_model("inception_v3@random")
    reference = zoo.inception_v3(weights=None, transform_input=True, aux_logits=False, init_weights=False).eval()
    reference.load_state_dict(net.state_dict())
    rgb = torch.rand(1, 3, 96, 96, dtype=torch.float64)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (rgb - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        logits = net.double()(normalised(card.mean, card.std))
        expected = reference.double()(normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert isinstance(logits, torch.Tensor) and logits.shape == (1, 1000)
    assert (logits - expected).norm() < 1e-6 * expected.norm()


def test_torchvision_files_with_auxiliary_heads_and_old_names(tmp_path: Path) -> None:
    zoo = pytest.importorskip("torchvision.models")
    source = zoo.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "googlenet.pth")
    net, card = create_model(f"googlenet@{tmp_path}/googlenet.pth")
    assert torch.equal(net.fc.weight, source.fc.weight) and card.mean == (0.5, 0.5, 0.5)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 1000)

    import re

    dense = zoo.densenet121(weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", key): value for key, value in dense.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    net, _ = create_model(f"densenet121@{tmp_path}/densenet.pth")
    assert all(torch.equal(value, dense[key]) for key, value in net.state_dict().items())


def test_mnasnet_file(tmp_path: Path) -> None:
    zoo = pytest.importorskip("torchvision.models")  # it checks the version number that its state dict carries
    torch.save(zoo.mnasnet0_5(weights=None).state_dict(), tmp_path / "net.pth")
    create_model(f"mnasnet0_5@{tmp_path}/net.pth")


def test_timm_cards() -> None:
    timm = pytest.importorskip("timm")
    cards = {card.name: card for card in list_models("timm/*")}
    assert set(cards) == {f"timm/{name}" for name in timm.list_models()}
    card = cards["timm/resnet18"]
    assert (card.label_space, card.class_names[0], card.default_weights) == ("imagenet1k", "tench", "a1_in1k")
    assert "tv_in1k" in card.weights and card.weights["a1_in1k"].licence == "apache-2.0"
    tagged = model_card("timm/resnet18.tv_in1k")
    assert list(tagged.weights) == ["tv_in1k"] and tagged.default_weights == "tv_in1k"
    assert model_card("timm/resnet18@tv_in1k").default_weights == "tv_in1k"
    assert model_card("timm/convnext_tiny.fb_in22k").label_space == "imagenet22k"
    assert model_card("timm/resmlp_12_224.fb_dino").label_space == ""


def test_timm_network() -> None:
    pytest.importorskip("timm")
    net, card = create_model("timm/resnet10t:num_classes=5@random")
    assert card.input_size == 176 and net(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match="has no classifier"):
        create_model("timm/convnext_tiny.dinov3_lvd1689m@random")


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ValueError, match=r"cannot download .*IMAGENET1K_V1.* of squeezenet1_1.*squeezenet1_1@/path"):
        create_model("squeezenet1_1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot download .*c3_in1k.*timm/resnet10t\.c3_in1k@/path"):
        create_model("timm/resnet10t.c3_in1k")
