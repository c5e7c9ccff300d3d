"""A network that loses channels, by what generated images say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

from ensemble.config.checked import Checked
from ensemble.machine.errors import is_out_of_memory
from ensemble.machine.rng import generator
from ensemble.teachers.copying import copied
from ensemble.teachers.features import class_outputs, find_classifier
from ensemble.training.pool import Pool
from ensemble.training.reading import forward_logits, inputs_of
from models import ModelCard
from models.pruned import mark, narrow

if TYPE_CHECKING:
    from types import ModuleType

_STEPS = 100
"""A step takes about so small a part of the channels; what is left is weighed again before the next."""


@dataclass(frozen=True)
class Cut(Checked):
    """Channels are taken from a trained network, the least important first, in all layers at once.

    taylor:     the sum of |g w| over a channel's weights w, g their gradient of the cross-entropy with the classes that
                the images were made for (after Molchanov et al. 2019, who square the sum of g w)
    magnitude:  the sum of squares of a channel's weights
    bn_scale:   |gamma| of its BatchNorm (Liu et al. 2017)

    Each divided by its layer's mean. Channels that only make sense together, as over a residual sum, go together. The
    classifier keeps its classes. No layer keeps less than a tenth.
    """

    flops: Annotated[float, Field(gt=0, lt=1)]
    """Share of the network's multiplications that is left, at most; as Torch-Pruning counts, with those of norms."""
    importance: Literal["taylor", "magnitude", "bn_scale"] = "taylor"
    images: PositiveInt = 500
    """So many, drawn, for `taylor`."""


@dataclass(frozen=True)
class CutNetwork:
    """What is left, and how much that is."""

    net: nn.Module
    before: tuple[float, int]
    """Multiplications of one image, and parameters."""
    after: tuple[float, int]

    def said(self) -> dict[str, Any]:
        """For a summary."""
        return {
            "flops": self.after[0] / self.before[0],
            "multiplications": {"before": self.before[0], "after": self.after[0]},
            "parameters": {"before": self.before[1], "after": self.after[1]},
        }


def pruning_library() -> ModuleType:
    """torch_pruning; ValueError where it is not installed."""
    try:
        import torch_pruning
    except ImportError:
        raise ValueError("prune: torch-pruning is not installed; pip install -e '.[prune]'") from None
    return torch_pruning


def cut(net: nn.Module, card: ModelCard, pool: Pool, rule: Cut, seed: int, device: torch.device) -> CutNetwork:
    """`net` with as many channels left as `rule` says, in place, by Torch-Pruning (Fang et al. 2023).

    Raises ValueError where the library does not know how the network's channels hang together, or cannot take enough,
    and where what is left could not be loaded again.
    """
    tp = pruning_library()
    net = net.to(device).eval().requires_grad_(True)
    chosen = torch.randperm(len(pool.data), generator=generator(seed, "importance"))[: rule.images]
    inputs, labels = inputs_of(pool.data.images[chosen], card, device), pool.data.labels[chosen].to(device)
    importance = {
        "taylor": tp.importance.GroupTaylorImportance,
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "bn_scale": tp.importance.BNScaleImportance,
    }[rule.importance]()
    whole = copied(net)
    example = inputs[:1]
    try:
        pruner = tp.pruner.BasePruner(
            net,
            example,
            importance=importance,
            global_pruning=True,
            pruning_ratio=0.9,
            max_pruning_ratio=0.9,
            iterative_steps=_STEPS,
            ignored_layers=_classifiers(net, card, example),
        )
        before = after = tp.utils.count_ops_and_params(net, example)
        for _ in range(_STEPS):
            if after[0] <= rule.flops * before[0]:
                break
            if rule.importance == "taylor":
                _gradients(net, card, inputs, labels)
            pruner.step()
            after = tp.utils.count_ops_and_params(net, example)
        _check_loads(net, whole, card, inputs[:2])
    except Exception as error:  # a network may be anybody's
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"prune: {card.name} cannot be pruned ({type(error).__name__}: {reason})") from None
    if after[0] == before[0]:
        raise ValueError(
            f"prune: --importance {rule.importance} takes no channels from {card.name}: none can go, or none counts "
            "less than others; ask for another"
        )
    if after[0] > rule.flops * before[0]:
        raise ValueError(
            f"prune: {card.name} keeps {after[0] / before[0]:.2f} of its multiplications with a tenth of each layer "
            f"left; ask for more than --flops {rule.flops:g}"
        )
    net.zero_grad()
    mark(net)
    return CutNetwork(net, before, after)


def _classifiers(net: nn.Module, card: ModelCard, example: torch.Tensor) -> list[nn.Module]:
    """The layer that says the classes, or where none is alone in it all linear ones of as many outputs."""
    try:
        return [find_classifier(net, card.num_classes, lambda: forward_logits(net, example, card))[1]]
    except ValueError:
        outputs = class_outputs(card.num_classes)
        return [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features in outputs]


@torch.no_grad()
def _check_loads(net: nn.Module, whole: nn.Module, card: ModelCard, inputs: torch.Tensor) -> None:
    """ValueError where the weights of `net`, in the network that it was before, do not say the same."""
    narrow(whole, net.state_dict(), "its weights")
    whole.load_state_dict(net.state_dict())
    if not torch.allclose(forward_logits(net, inputs, card), forward_logits(whole, inputs, card), rtol=1e-3, atol=1e-3):
        raise ValueError("what is left says something else once it is loaded")


def _gradients(net: nn.Module, card: ModelCard, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Those of the mean cross-entropy, at the weights."""
    net.zero_grad()
    for part, classes in zip(inputs.split(100), labels.split(100), strict=True):
        (F.cross_entropy(forward_logits(net, part, card), classes, reduction="sum") / len(labels)).backward()
