"""Registrations of the CIFAR networks, and other projects' layouts of their weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from models._card import IMAGENET_MEAN, IMAGENET_STD, ModelCard
from models._layouts import Layout, Tensors, without_conv_bias
from models._table import Factory, register_model, unchanged
from models.cifar import CIFAR10_CLASSES, CifarResNet, CifarVGG, CifarWideResNet
from models.cifar_densenet import CifarDenseNet
from models.cifar_mobilenet import mobilenetv2
from models.cifar_resnet import CifarDeepResNet, CifarResNeXt
from models.cifar_shufflenet import CHANNELS, CifarShuffleNetV2
from models.edge_popup import PAPER, SubnetRule, as_subnet


def _register(
    name: str,
    family: str,
    citation: str,
    factory: Factory,
    layouts: tuple[Layout, ...] = (),
    adapt: Callable[[Tensors], Tensors] = unchanged,
) -> None:
    card = ModelCard(
        name,
        family,
        input_size=32,
        num_classes=10,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_names=CIFAR10_CLASSES,
        label_space="cifar10",
        citation=citation,
    )
    register_model(card, published=True, layouts=layouts, adapt=adapt)(factory)


def _subnet(factory: Callable[..., nn.Module], rule: SubnetRule, num_classes: int = 10) -> nn.Module:
    return as_subnet(factory(num_classes=num_classes), rule)


def _rows(key: str) -> Callable[[Tensors], int]:
    return lambda tensors: int(tensors[key].shape[0])


_FC = (r"fc\.(.*)", r"linear.\1")
_DOWNSAMPLE = (r"(.*)\.downsample\.(.*)", r"\1.shortcut.\2")

# --- ResNet of 6n + 2 layers ------------------------------------------------------------------------------------

_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2"
_OPTION_B = (
    Layout(
        "chenyaofo",
        ("conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"),
        ("layer4.0.conv1.weight",),
        (_FC, _DOWNSAMPLE),
        lambda _: {"shortcut": "B"},
    ),
    Layout(
        "akamaster",
        ("conv1.weight", "layer2.0.shortcut.0.weight", "linear.weight"),
        ("layer4.0.conv1.weight",),
        options=lambda _: {"shortcut": "B"},
    ),
)
for _depth in (8, 14, 20, 32, 44, 56, 110):
    _register(f"resnet{_depth}_cifar", "resnet", _RESNET, partial(CifarResNet, _depth), _OPTION_B)
_register(
    "resnet20_popup_cifar",
    "edge_popup",
    f"{PAPER}; {_RESNET}",
    partial(_subnet, partial(CifarResNet, 20, width=2.0), SubnetRule(k=50)),
)

# --- ResNet-18/34/50, ResNeXt -----------------------------------------------------------------------------------

_DEEP_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1; 3 x 3 stem"
_RESNEXT = "Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017, section 5.3"
_DEEP = (
    Layout("kuangliu", ("conv1.weight", "layer4.0.conv1.weight", "linear.weight"), ("layer2.0.downsample.0.weight",)),
    Layout(
        "huyvnphan",
        ("conv1.weight", "layer4.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"),
        rename=(_FC, _DOWNSAMPLE),
        options=lambda _: {"pool": True},
        note="that has max-pooling after the stem, which is taken (pool=true); say pool=false where there was none",
    ),
)


def _resnext_key(match: re.Match[str]) -> str:
    stage, block, part, rest = match.groups()
    ours = {
        "conv_reduce": "conv1",
        "bn_reduce": "bn1",
        "conv_conv": "conv2",
        "bn": "bn2",
        "conv_expand": "conv3",
        "bn_expand": "bn3",
        "shortcut.shortcut_conv": "shortcut.0",
        "shortcut.shortcut_bn": "shortcut.1",
    }
    return f"layer{stage}.{block}.{ours.get(part, part)}.{rest}"


_RESNEXTS = (
    Layout(
        "kuangliu",
        ("conv1.weight", "layer3.0.conv3.weight", "linear.weight"),
        ("layer4.0.conv1.weight",),
        options=lambda tensors: {"stem": int(tensors["conv1.weight"].shape[-1])},
    ),
    Layout(
        "bearpaw",
        ("conv_1_3x3.weight", "stage_1.stage_1_bottleneck_0.conv_reduce.weight", "classifier.weight"),
        rename=(
            (r"conv_1_3x3\.(.*)", r"conv1.\1"),
            (r"bn_1\.(.*)", r"bn1.\1"),
            (r"classifier\.(.*)", r"linear.\1"),
            (r"stage_(\d)\.stage_\d_bottleneck_(\d+)\.(.*)\.(\w+)", _resnext_key),
        ),
        options=lambda _: {"stem": 3},
    ),
)
for _depth in (18, 34, 50):
    _register(f"resnet{_depth}_cifar", "resnet", _DEEP_RESNET, partial(CifarDeepResNet, _depth), _DEEP)
for _groups, _base in ((2, 64), (4, 64), (8, 64), (16, 64), (32, 4)):
    _register(
        f"resnext29_{_groups}x{_base}d_cifar", "resnext", _RESNEXT, partial(CifarResNeXt, _groups, _base), _RESNEXTS
    )

# --- VGG --------------------------------------------------------------------------------------------------------

_VGG = "Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015; BatchNorm, one linear classifier"
_VGG_HEAD = ("features.0.weight", "features.1.running_mean", "classifier.0.weight", "classifier.6.weight")
_hidden = _rows("classifier.0.weight")
_VGGS = (
    Layout("kuangliu", ("features.0.bias", "features.1.running_mean", "classifier.weight")),
    Layout(
        "huyvnphan",
        _VGG_HEAD,
        options=lambda tensors: {"hidden": _hidden(tensors)},
        only_if=lambda tensors: _hidden(tensors) == 4096,
    ),
    Layout("chenyaofo", _VGG_HEAD, options=lambda tensors: {"hidden": _hidden(tensors)}),
)
for _depth in (11, 13, 16, 19):
    _register(f"vgg{_depth}_bn_cifar", "vgg", _VGG, partial(CifarVGG, _depth), _VGGS, without_conv_bias)
_register("vgg16_bn_slim_cifar", "vgg", _VGG, partial(CifarVGG, 16, width=0.25), _VGGS, without_conv_bias)

# --- Wide ResNet ------------------------------------------------------------------------------------------------

_WRN = "Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016"


def _wrn_key(match: re.Match[str]) -> str:
    stage, block, rest = match.groups()
    return f"blocks.{int(stage) - 1}.{block}.{rest.replace('convShortcut', 'shortcut')}"


_WRNS = (
    Layout(
        "bearpaw",
        ("conv1.weight", "block1.layer.0.conv1.weight", "bn1.weight", "fc.weight"),
        rename=((r"block(\d)\.layer\.(\d+)\.(.*)", _wrn_key), (r"bn1\.(.*)", r"bn.\1"), _FC),
    ),
)
for _depth, _k in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2)):
    _register(f"wrn{_depth}_{_k}_cifar", "wide_resnet", _WRN, partial(CifarWideResNet, _depth, _k), _WRNS)

# --- DenseNet ---------------------------------------------------------------------------------------------------

_DENSENET = "Huang et al., Densely Connected Convolutional Networks, CVPR 2017; 3 x 3 stem"


def _dense_key(match: re.Match[str]) -> str:
    stage, layer, rest = match.groups()
    return f"stages.{2 * int(stage) - 2}.{int(layer) - 1}.{rest.replace('norm', 'bn')}"


_DENSENETS = (
    Layout(
        "kuangliu",
        ("conv1.weight", "dense1.0.conv1.weight", "trans1.conv.weight", "linear.weight"),
        rename=(
            (r"dense(\d)\.(.*)", lambda match: f"stages.{2 * int(match[1]) - 2}.{match[2]}"),
            (r"trans(\d)\.(.*)", lambda match: f"stages.{2 * int(match[1]) - 1}.{match[2]}"),
        ),
        options=lambda tensors: {"growth": _rows("conv1.weight")(tensors) // 2},
    ),
    Layout(
        "huyvnphan",
        ("features.conv0.weight", "features.denseblock1.denselayer1.conv1.weight", "classifier.weight"),
        rename=(
            (r"features\.conv0\.(.*)", r"conv1.\1"),
            (r"features\.norm0\.(.*)", r"stem.0.\1"),
            (r"features\.denseblock(\d)\.denselayer(\d+)\.(.*)", _dense_key),
            (r"features\.transition(\d)\.norm\.(.*)", lambda m: f"stages.{2 * int(m[1]) - 1}.bn.{m[2]}"),
            (r"features\.transition(\d)\.conv\.(.*)", lambda m: f"stages.{2 * int(m[1]) - 1}.conv.{m[2]}"),
            (r"features\.norm5\.(.*)", r"bn.\1"),
            (r"classifier\.(.*)", r"linear.\1"),
        ),
        options=lambda tensors: {"pool": True, "growth": _rows("features.conv0.weight")(tensors) // 2},
        note="that has max-pooling after the stem, which is taken (pool=true)",
    ),
)
_register("densenet121_cifar", "densenet", _DENSENET, partial(CifarDenseNet, 121), _DENSENETS)

# --- MobileNetV2, ShuffleNetV2 ----------------------------------------------------------------------------------

_MOBILENET = "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018"
_SHUFFLENET = "Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018"


def _late(tensors: Tensors) -> dict[str, Any]:
    return {"variant": "late", "width": _rows("features.17.conv.2.weight")(tensors) / 320}


_LATE = ("features.0.0.weight", "features.17.conv.2.weight", "features.18.0.weight", "classifier.1.weight")
_MOBILENETS = (
    Layout(
        "chenyaofo",
        _LATE,
        options=_late,
        note="huyvnphan/PyTorch_CIFAR10 names them so too, with the same mean and std 0.2471/0.2435/0.2616",
    ),
    Layout(
        "kuangliu",
        ("conv1.weight", "layers.0.conv1.weight", "layers.16.conv3.weight", "linear.weight"),
        options=lambda _: {"variant": "relu"},
    ),
)
_WIDTHS = {channels[0]: width for width, channels in CHANNELS.items()}


def _shuffle_width(key: str) -> Callable[[Tensors], dict[str, Any]]:
    def width(tensors: Tensors) -> dict[str, Any]:
        channels = 2 * _rows(key)(tensors)
        return {"width": _WIDTHS[channels]} if channels in _WIDTHS else {}

    return width


def _shuffle_key(match: re.Match[str]) -> str:
    layer, unit, kind, number, rest = match.groups()
    first = 1 if unit == "0" else 3  # the first unit's convolutions 1 and 2 are its other branch's
    branch, place = (1, (0, 2)[int(number) - 1]) if int(number) < 3 and first == 1 else (2, 0)
    if branch == 2:
        place = (0, 3, 5)[int(number) - (3 if first == 1 else 1)]
    return f"stage{int(layer) + 1}.{unit}.branch{branch}.{place + (kind == 'bn')}.{rest}"


_SHUFFLENETS = (
    Layout(
        "chenyaofo",
        ("conv1.0.weight", "stage2.0.branch1.2.weight", "fc.weight"),
        options=_shuffle_width("stage2.0.branch1.2.weight"),
    ),
    Layout(
        "kuangliu",
        ("conv1.weight", "layer1.0.conv2.weight", "layer1.0.conv5.weight", "linear.weight"),
        rename=(
            (r"layer(\d)\.(\d+)\.(conv|bn)([1-5])\.(.*)", _shuffle_key),
            (r"conv1\.(.*)", r"conv1.0.\1"),
            (r"bn1\.(.*)", r"conv1.1.\1"),
            (r"conv2\.(.*)", r"conv5.0.\1"),
            (r"bn2\.(.*)", r"conv5.1.\1"),
            (r"linear\.(.*)", r"fc.\1"),
        ),
        options=_shuffle_width("layer1.0.conv2.weight"),
    ),
)
_register("mobilenetv2_cifar", "mobilenetv2", _MOBILENET, mobilenetv2, _MOBILENETS)
_register("mobilenetv2_slim_cifar", "mobilenetv2", _MOBILENET, partial(mobilenetv2, width=0.5), _MOBILENETS)
_register("shufflenetv2_cifar", "shufflenetv2", _SHUFFLENET, CifarShuffleNetV2, _SHUFFLENETS)
