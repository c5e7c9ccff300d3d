"""Weights as the field's CIFAR projects save them load under our names and compute the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from other_layouts import (
    VGG,
    VGG11,
    VGG16,
    NamedResNeXt,
    PlainDenseNet,
    PlainMobileNet,
    PlainShuffleNet,
    ResNet,
    TorchvisionDenseNet,
    TorchvisionMobileNet,
    WideResNet,
    basic_stages,
    bottleneck_stages,
)
from safetensors.torch import save_file
from torch import nn

from models import create_model, model_card
from models._said import _warned

KUANGLIU = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HUYVNPHAN = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CHENYAOFO_100 = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
SMALL = ((16, 32, 64), (3, 3, 3))
DEEP = (64, 128, 256, 512)
RESNET50 = bottleneck_stages(DEEP, (256, 512, 1024, 2048), (3, 4, 6, 3))


def resnext(groups: int, base: int) -> nn.Module:
    d = groups * base
    stages = bottleneck_stages((d, 2 * d, 4 * d), (2 * d, 4 * d, 8 * d), (3, 3, 3))
    return ResNet(stages, "shortcut", "linear", (64, 1), groups=groups)


def torchvision_shufflenet(width: str) -> nn.Module:
    """torchvision's own, less its first two halvings."""
    from torchvision.models import get_model

    net = get_model(f"shufflenet_v2_x{width}", weights=None, num_classes=10)
    net.conv1[0].stride, net.maxpool = (1, 1), nn.Identity()
    return net


# name, network, project, mean and std
CASES = {
    "kuangliu resnet18": (
        "resnet18_cifar",
        lambda: ResNet(basic_stages(DEEP, (2, 2, 2, 2)), "shortcut", "linear"),
        "kuangliu",
        KUANGLIU,
    ),
    "kuangliu resnet34": (
        "resnet34_cifar",
        lambda: ResNet(basic_stages(DEEP, (3, 4, 6, 3)), "shortcut", "linear"),
        "kuangliu",
        KUANGLIU,
    ),
    "kuangliu resnet50": ("resnet50_cifar", lambda: ResNet(RESNET50, "shortcut", "linear"), "kuangliu", KUANGLIU),
    "huyvnphan resnet18": (
        "resnet18_cifar",
        lambda: ResNet(basic_stages(DEEP, (2, 2, 2, 2)), "downsample", "fc", pool=True),
        "huyvnphan",
        HUYVNPHAN,
    ),
    "huyvnphan resnet50": (
        "resnet50_cifar",
        lambda: ResNet(RESNET50, "downsample", "fc", pool=True),
        "huyvnphan",
        HUYVNPHAN,
    ),
    "chenyaofo resnet20": (
        "resnet20_cifar",
        lambda: ResNet(basic_stages(*SMALL), "downsample", "fc", (16, 3)),
        "chenyaofo",
        KUANGLIU,
    ),
    "chenyaofo resnet20 for CIFAR-100": (
        "resnet20_cifar:num_classes=100",
        lambda: ResNet(basic_stages(*SMALL), "downsample", "fc", (16, 3), classes=100),
        "chenyaofo",
        CHENYAOFO_100,
    ),
    "akamaster option B": (
        "resnet20_cifar",
        lambda: ResNet(basic_stages(*SMALL), "shortcut", "linear", (16, 3)),
        "akamaster",
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
    "kuangliu vgg16": ("vgg16_bn_cifar", lambda: VGG(VGG16), "kuangliu", KUANGLIU),
    "chenyaofo vgg11": ("vgg11_bn_cifar", lambda: VGG(VGG11, 512), "chenyaofo", KUANGLIU),
    "huyvnphan vgg11": ("vgg11_bn_cifar", lambda: VGG(VGG11, 4096), "huyvnphan", HUYVNPHAN),
    "bearpaw wrn16_1": ("wrn16_1_cifar", lambda: WideResNet(16, 1), "bearpaw", KUANGLIU),
    "bearpaw wrn16_2": ("wrn16_2_cifar", lambda: WideResNet(16, 2), "bearpaw", KUANGLIU),
    "bearpaw wrn40_1": ("wrn40_1_cifar", lambda: WideResNet(40, 1), "bearpaw", KUANGLIU),
    "kuangliu mobilenetv2": ("mobilenetv2_cifar", PlainMobileNet, "kuangliu", KUANGLIU),
    "chenyaofo mobilenetv2": ("mobilenetv2_cifar", TorchvisionMobileNet, "chenyaofo", KUANGLIU),
    "chenyaofo mobilenetv2 x0.5": (
        "mobilenetv2_cifar",
        lambda: TorchvisionMobileNet((16, 8, 16, 16, 32, 48, 80, 160, 1280)),
        "chenyaofo",
        KUANGLIU,
    ),
    "chenyaofo mobilenetv2 x1.4": (
        "mobilenetv2_cifar",
        lambda: TorchvisionMobileNet((48, 24, 32, 48, 88, 136, 224, 448, 1792)),
        "chenyaofo",
        KUANGLIU,
    ),
    "kuangliu shufflenetv2": ("shufflenetv2_cifar", PlainShuffleNet, "kuangliu", KUANGLIU),
    "chenyaofo shufflenetv2": ("shufflenetv2_cifar", lambda: torchvision_shufflenet("1_0"), "chenyaofo", KUANGLIU),
    "kuangliu densenet": ("densenet121_cifar", PlainDenseNet, "kuangliu", KUANGLIU),
    "huyvnphan densenet": ("densenet121_cifar", TorchvisionDenseNet, "huyvnphan", HUYVNPHAN),
    "kuangliu resnext": ("resnext29_2x64d_cifar", lambda: resnext(2, 64), "kuangliu", KUANGLIU),
    "kuangliu resnext 32x4d": ("resnext29_32x4d_cifar", lambda: resnext(32, 4), "kuangliu", KUANGLIU),
    "bearpaw resnext": ("resnext29_2x64d_cifar", lambda: NamedResNeXt(2, 64), "bearpaw", KUANGLIU),
}


SLOW = {
    "kuangliu resnet34",
    "huyvnphan resnet50",
    "chenyaofo mobilenetv2 x1.4",
    "kuangliu resnext 32x4d",
    "bearpaw wrn16_2",
}


def _drawn(net: nn.Module) -> nn.Module:
    """`net` in eval mode with all its tensors drawn, so that no two are alike; activations stay of order one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.8, 1.2)
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


@pytest.fixture(autouse=True)
def warned():
    _warned.clear()


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES])
def test_same_function_mean_and_std(case: str, tmp_path: Path) -> None:
    name, build, project, (mean, std) = CASES[case]
    reference = _drawn(build())
    state = {f"module.{key}": value for key, value in reference.state_dict().items()}
    torch.save({"net": state, "acc": 91.7, "epoch": 199}, tmp_path / "ckpt.t7")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net, card = create_model(f"{name}@{tmp_path}/ckpt.t7")
    assert (card.mean, card.std) == (mean, std) and set(card.assumed) == {"mean", "std"}
    assert (model_card(f"{name}@{tmp_path}/ckpt.t7").mean, card.name) == (mean, name.partition(":")[0])
    (text,) = (str(w.message) for w in said if "does not say its" in str(w.message))
    assert f"assumed as its layout is that of {project}/" in text
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, expected = net.double()(images.double()), reference.double()(images.double())
    assert expected.std(0).min() > 1e-3  # the images matter
    # fp32 tensors; VGG's biases are folded in fp32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_sorted_keys_change_nothing(tmp_path: Path) -> None:
    """A safetensors file does not keep the order of definition."""
    reference = _drawn(VGG(VGG11, 512))
    save_file(reference.state_dict(), tmp_path / "net.safetensors")
    with warnings.catch_warnings(record=True):
        net, _ = create_model(f"vgg11_bn_cifar@{tmp_path}/net.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(net(images), reference(images), rtol=1e-3, atol=1e-3)


def test_what_is_said_goes_before_the_layout(tmp_path: Path) -> None:
    torch.save(_drawn(CASES["huyvnphan resnet18"][1]()).state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.yaml").write_text("mean: 0.5\n")
    with pytest.warns(UserWarning, match="max-pooling after the stem, which is taken .*say pool=false"):
        net, card = create_model(f"resnet18_cifar:std=0.3@{tmp_path}/net.pt")
    assert (card.mean, card.std) == ((0.5,) * 3, (0.3,) * 3) and isinstance(net.pool, nn.MaxPool2d)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net, _ = create_model(f"resnet18_cifar:std=0.3,pool=false@{tmp_path}/net.pt")
    assert isinstance(net.pool, nn.Identity)


@pytest.mark.filterwarnings("ignore:.*does not say its")
@pytest.mark.parametrize(
    ("name", "case", "message"),
    [
        ("resnet34_cifar", "kuangliu resnet18", "does not fit resnet34_cifar: .*missing .layer1.2.conv1.weight"),
        ("resnet18_cifar", "kuangliu resnet50", "does not fit resnet18_cifar"),
        ("vgg13_bn_cifar", "chenyaofo vgg11", "does not fit vgg13_bn_cifar"),
        ("wrn16_2_cifar", "bearpaw wrn16_1", "does not fit wrn16_2_cifar: .*of another shape"),
        (
            "resnet20_cifar",
            "chenyaofo resnet20 for CIFAR-100",
            "for its 100 classes ask for resnet20_cifar:num_classes=100",
        ),
        ("wrn16_1_cifar", "kuangliu resnet18", "does not fit wrn16_1_cifar"),
    ],
)
def test_another_network(tmp_path: Path, name: str, case: str, message: str) -> None:
    torch.save(CASES[case][1]().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=message):
        create_model(f"{name}@{tmp_path}/net.pt")


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    state = _drawn(WideResNet(16, 1)).state_dict()
    torch.save(state | {"blocks.0.0.conv1.weight": state["block1.layer.0.conv1.weight"]}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="1 unexpected"):
        create_model(f"wrn16_1_cifar@{tmp_path}/net.pt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20_cifar:shortcut=C@random", "shortcut must be A or B"),
        ("shufflenetv2_cifar:width=0.7@random", "width must be one of 0.5, 1.0, 1.5, 2.0"),
        ("mobilenetv2_cifar:variant=x@random", "variant must be early, late, or relu"),
        ("resnext29_2x64d_cifar:stem=2@random", "stem must be 1 or 3"),
    ],
)
def test_users_mistakes(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(spec)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18_cifar", 11_173_962),
        ("resnet34_cifar", 21_282_122),
        ("resnet50_cifar", 23_520_842),
        ("densenet121_cifar", 6_956_298),
        ("wrn40_1_cifar", 563_930),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    net, _ = create_model(f"{name}@random")
    assert sum(p.numel() for p in net.parameters()) == parameters
