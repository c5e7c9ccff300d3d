"""Registrations of the CIFAR networks in models/cifar.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from models._card import IMAGENET_MEAN, IMAGENET_STD, ModelCard
from models._table import Factory, register_model
from models.cifar import CIFAR10_CLASSES, CifarMobileNetV2, CifarResNet, CifarVGG, CifarWideResNet
from models.edge_popup import PAPER, SubnetRule, as_subnet


def _register(name: str, family: str, citation: str, factory: Factory) -> None:
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
    register_model(card, published=True)(factory)


def _subnet(factory: Callable[..., nn.Module], rule: SubnetRule, num_classes: int = 10) -> nn.Module:
    return as_subnet(factory(num_classes=num_classes), rule)


_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2"
_VGG = "Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015; BatchNorm, one linear classifier"
_WRN = "Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016"
_MOBILENET = "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018"

for _depth in (20, 32, 44, 56, 110):
    _register(f"resnet{_depth}_cifar", "resnet", _RESNET, partial(CifarResNet, _depth))
for _depth in (11, 13, 16, 19):
    _register(f"vgg{_depth}_bn_cifar", "vgg", _VGG, partial(CifarVGG, _depth))
_register("vgg16_bn_slim_cifar", "vgg", _VGG, partial(CifarVGG, 16, width=0.25))
for _depth, _k in ((16, 2), (28, 10), (40, 2)):
    _register(f"wrn{_depth}_{_k}_cifar", "wide_resnet", _WRN, partial(CifarWideResNet, _depth, _k))
_register(
    "resnet20_popup_cifar",
    "edge_popup",
    f"{PAPER}; {_RESNET}",
    partial(_subnet, partial(CifarResNet, 20, width=2.0), SubnetRule(k=50)),
)
_register("mobilenetv2_cifar", "mobilenetv2", _MOBILENET, CifarMobileNetV2)
_register("mobilenetv2_slim_cifar", "mobilenetv2", _MOBILENET, partial(CifarMobileNetV2, width=0.5))
