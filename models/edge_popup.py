"""Edge-popup: subnets of networks with random, frozen weights (Ramanujan et al., CVPR 2020).

A weight is kept where the magnitude of its score is among the largest k %; scores are learned, weights never.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models._card import ModelCard
from models._loading import WeightsFile, fit

Init = Literal["kaiming_normal", "signed_constant"]
Scope = Literal["layer", "global"]
PAPER = "Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, CVPR 2020"
METADATA = "edge_popup"
"""Key of a compact file's metadata."""
_MASK = ".mask"


@dataclass(frozen=True)
class SubnetRule:
    """What determines a subnet beside its scores."""

    k: float
    """Per cent of the weights that are kept."""
    init: Init = "signed_constant"
    """Weights before masking: normal with He's standard deviation sqrt(2 / fan_in), or that with random signs."""
    scaled: bool = False
    """Divide the standard deviation by sqrt(k / 100), since only so many weights reach a unit."""
    scope: Scope = "layer"
    """Scores are ranked within each layer, or over all layers together."""
    seed: int = 0
    """Draws the weights."""

    def __post_init__(self) -> None:
        if not 0 < self.k <= 100:
            raise ValueError(f"edge-popup: k is a percentage in (0, 100], got {self.k:g}")
        for name, value, kind in (("init", self.init, Init), ("scope", self.scope, Scope)):
            if value not in get_args(kind):
                raise ValueError(f"edge-popup: {name} must be one of {', '.join(get_args(kind))}, got {value!r}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"edge-popup: seed must lie in [0, 2^32), got {self.seed}")

    def kept(self, weights: int) -> int:
        """ceil(k % of `weights`), exactly; ValueError where that would be less than one whole weight."""
        share = Fraction(str(self.k)) / 100 * weights
        if share < 1:
            raise ValueError(f"edge-popup: {self.k:g} % of {weights} weights is less than one")
        return math.ceil(share)


class _StraightThrough(torch.autograd.Function):
    """The mask forward; backward, its gradient as that of the scores' magnitudes."""

    @staticmethod
    def forward(ctx: Any, magnitudes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def top_mask(magnitudes: torch.Tensor, kept: int) -> torch.Tensor:
    """1 at the `kept` largest of `magnitudes` (any shape), 0 elsewhere; of equals the last are kept."""
    order = magnitudes.detach().flatten().sort(stable=True).indices
    mask = torch.zeros_like(magnitudes).flatten()
    mask[order[len(order) - kept :]] = 1
    return mask.view_as(magnitudes)


class _Ranking:
    """Masks of all layers of one subnet, from their scores."""

    def __init__(self, rule: SubnetRule) -> None:
        self.rule = rule
        self.layers: list[SubnetConv2d | SubnetLinear] = []
        self.ranked: list[torch.Tensor] = []
        """The layers' masks, for the global scope."""

    @torch.no_grad()
    def rank(self, *_: object) -> None:
        """Called before each pass."""
        if self.rule.scope == "global":
            magnitudes = torch.cat([layer.scores.abs().flatten() for layer in self.layers])
            whole = top_mask(magnitudes, self.rule.kept(len(magnitudes)))
            self.ranked = list(whole.split([layer.scores.numel() for layer in self.layers]))

    @torch.no_grad()
    def mask(self, layer: SubnetConv2d | SubnetLinear) -> torch.Tensor:
        if self.rule.scope == "global":
            place = next(i for i, other in enumerate(self.layers) if other is layer)
            return self.ranked[place].view_as(layer.scores)
        return top_mask(layer.scores.abs(), self.rule.kept(layer.scores.numel()))


def _adopt(layer: SubnetConv2d | SubnetLinear, ranking: _Ranking) -> None:
    layer.weight.requires_grad_(False)
    layer.scores = nn.Parameter(torch.empty_like(layer.weight))
    nn.init.kaiming_uniform_(layer.scores, a=math.sqrt(5))
    layer.ranking = ranking


def _masked_weight(layer: SubnetConv2d | SubnetLinear) -> torch.Tensor:
    return layer.weight * _StraightThrough.apply(layer.scores.abs(), layer.ranking.mask(layer))


class SubnetConv2d(nn.Conv2d):
    """A convolution without bias whose kept weights are chosen by scores."""

    scores: nn.Parameter
    ranking: _Ranking

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, _masked_weight(self), None)


class SubnetLinear(nn.Linear):
    """A linear map without bias whose kept weights are chosen by scores."""

    scores: nn.Parameter
    ranking: _Ranking

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, _masked_weight(self))


def as_subnet(net: nn.Module, rule: SubnetRule) -> nn.Module:
    """`net`, changed in place: Conv2d and Linear become subnet layers, BatchNorm2d loses its affine part.

    Weights are drawn from `rule`; scores from the global generator (Kaiming uniform); biases are left out, as in
    the published networks. Raises ValueError where a layer has fewer weights than one survivor, where none is
    found, and where other parts of the network would stay trainable (attention, layer norms, layers of a kind
    of their own).
    """
    if subnet_layers(net):
        raise ValueError("edge-popup: the network is a subnet already")
    ranking = _Ranking(rule)
    for name, module in list(net.named_modules()):
        replacement = _replacement(module)
        if replacement is None:
            continue
        net.set_submodule(name, replacement)
        if isinstance(replacement, SubnetConv2d | SubnetLinear):
            if rule.scope == "layer":
                _named(name, rule.kept, replacement.weight.numel())
            _adopt(replacement, ranking)
    ranking.layers = list(subnet_layers(net).values())
    if not ranking.layers:
        raise ValueError("edge-popup: the network has no convolution and no linear layer")
    rest = [name for name, p in net.named_parameters() if p.requires_grad and not name.endswith(".scores")]
    if rest:
        raise ValueError(
            f"edge-popup: {rest[0]} belongs to no plain Conv2d, Linear or BatchNorm2d; it would stay dense"
        )
    _draw_weights(ranking)
    net.register_forward_pre_hook(ranking.rank)
    return net


def _replacement(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Conv2d:
        return SubnetConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            bias=False,
            padding_mode=module.padding_mode,
        )
    if type(module) is nn.Linear:
        return SubnetLinear(module.in_features, module.out_features, bias=False)
    if type(module) is nn.BatchNorm2d:
        return nn.BatchNorm2d(module.num_features, module.eps, module.momentum, affine=False)
    return None


def _named(name: str, kept: Callable[[int], int], weights: int) -> None:
    try:
        kept(weights)
    except ValueError as error:
        raise ValueError(f"{error}: layer {name}") from None


@torch.no_grad()
def _draw_weights(ranking: _Ranking) -> None:
    """From numpy's legacy generator, whose stream is frozen: the same bits in every version, layer by layer."""
    rule = ranking.rule
    rng = np.random.RandomState(rule.seed)
    for layer in ranking.layers:
        fan_in = layer.weight[0].numel()
        std = math.sqrt(2 / fan_in / (rule.k / 100 if rule.scaled else 1))
        drawn = rng.standard_normal(layer.weight.shape)
        values = std * (np.sign(drawn) if rule.init == "signed_constant" else drawn)
        layer.weight.copy_(torch.from_numpy(values.astype(np.float32)))


def subnet_layers(net: nn.Module) -> dict[str, SubnetConv2d | SubnetLinear]:
    """The subnet layers of `net` by name; empty for a dense network."""
    return {name: m for name, m in net.named_modules() if isinstance(m, SubnetConv2d | SubnetLinear)}


def subnet_rule(net: nn.Module) -> SubnetRule:
    """The rule of a network made by `as_subnet`."""
    return next(iter(subnet_layers(net).values())).ranking.rule


@torch.no_grad()
def masks(net: nn.Module) -> dict[str, torch.Tensor]:
    """Each subnet layer's mask of 0 and 1, as its scores choose it."""
    layers = subnet_layers(net)
    next(iter(layers.values())).ranking.rank()
    return {name: layer.ranking.mask(layer) for name, layer in layers.items()}


@torch.no_grad()
def frozen(net: nn.Module) -> nn.Module:
    """`net` with its masks applied once: plain layers that cost what those of a dense network cost.

    A dense network is returned as it is.
    """
    if not subnet_layers(net):
        return net
    return _with_weights(net, {name: layer.weight * m for (name, layer), m in _zipped(net, masks(net))})


def _zipped(
    net: nn.Module, by_layer: Mapping[str, torch.Tensor]
) -> Iterator[tuple[tuple[str, SubnetConv2d | SubnetLinear], torch.Tensor]]:
    for name, layer in subnet_layers(net).items():
        yield (name, layer), by_layer[name]


def _with_weights(net: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    for name, layer in subnet_layers(net).items():
        plain: nn.Module
        if isinstance(layer, SubnetConv2d):
            plain = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                layer.groups,
                bias=False,
                padding_mode=layer.padding_mode,
            )
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(weights[name], requires_grad=False)
        net.set_submodule(name, plain)
    net._forward_pre_hooks.clear()
    return net


# --- on disk --------------------------------------------------------------------------------------------------


def compact(net: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a subnet: one bit per weight, the other state in fp32, and the rule with a digest.

    The weights are not in it: the rule draws them again.
    """
    layers = subnet_layers(net)
    packed = {name + _MASK: _pack(mask) for name, mask in masks(net).items()}
    left_out = {f"{name}.{key}" for name in layers for key in ("weight", "scores")}
    rest = {
        key: value.detach().cpu().clone()
        for key, value in net.state_dict().items()
        if key not in left_out and not key.endswith("num_batches_tracked")
    }
    about = {**asdict(subnet_rule(net)), "digest": _digest(net, masks(net))}
    return packed | rest, {METADATA: json.dumps(about)}


def load_subnet(net: nn.Module, weights: WeightsFile, card: ModelCard) -> nn.Module:
    """The frozen network of `weights`, a compact file or one of the published kind; `net` is used up.

    A published file holds `weight` and `scores` of every layer, but neither k nor the rule: k is the network's
    own. Raises ValueError for keys that do not match, a damaged mask, a mask that does not keep k %, or weights
    that come out other than those that were stored.
    """
    if METADATA in weights.metadata:
        return _load_compact(net, weights, card)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    tensors = {  # the published networks end in a 1 x 1 convolution where torchvision's have a linear layer
        key: value.flatten(1)
        if value.ndim == 4 and value.shape[2:] == (1, 1) and len(shapes.get(key, ())) == 2
        else value
        for key, value in weights.tensors.items()
    }
    fit(net, tensors, card, str(weights.path))
    return frozen(net)


def _load_compact(net: nn.Module, weights: WeightsFile, card: ModelCard) -> nn.Module:
    where = str(weights.path)
    try:
        about = json.loads(weights.metadata[METADATA])
        digest, rule = about.pop("digest"), SubnetRule(**about)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: its edge-popup metadata is damaged ({error})") from None
    if rule != subnet_rule(net):
        asked, held = asdict(subnet_rule(net)), asdict(rule)
        differs = ", ".join(f"{key}={held[key]}" for key in held if held[key] != asked[key])
        raise ValueError(f"{where} holds a subnet with {differs}; ask {card.name} for those options")
    layers = subnet_layers(net)
    rest = {key: value for key, value in weights.tensors.items() if not key.endswith(_MASK)}
    state = {f"{name}.{key}": getattr(layer, key) for name, layer in layers.items() for key in ("weight", "scores")}
    unknown = [key for key in weights.tensors if key.endswith(_MASK) and key.removesuffix(_MASK) not in layers]
    if unknown:
        raise ValueError(f"{where} does not fit {card.name}: {len(unknown)} unexpected ({', '.join(unknown[:3])})")
    fit(net, rest | state, card, where)
    found = {}
    for name, layer in layers.items():
        found[name] = _unpack(weights.tensors.get(name + _MASK), layer.weight, f"{where}: the mask of {name}")
    _check_counts(found, rule, where)
    if _digest(net, found) != digest:
        raise ValueError(
            f"{where}: the subnet's digest is not the one that was stored; the file is damaged, or this machine "
            "draws other random weights"
        )
    return _with_weights(net, {name: layer.weight.detach() * m for (name, layer), m in _zipped(net, found)})


def _check_counts(found: Mapping[str, torch.Tensor], rule: SubnetRule, where: str) -> None:
    sizes = {name: (int(mask.sum()), mask.numel()) for name, mask in found.items()}
    if rule.scope == "global":
        sizes = {"all layers": (sum(a for a, _ in sizes.values()), sum(b for _, b in sizes.values()))}
    for name, (kept, total) in sizes.items():
        if kept != rule.kept(total):
            raise ValueError(f"{where}: the mask of {name} keeps {kept} of {total} weights, not {rule.k:g} %; damaged")


def _pack(mask: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy().astype(bool)))


def _unpack(packed: torch.Tensor | None, weight: torch.Tensor, what: str) -> torch.Tensor:
    size = -(-weight.numel() // 8)
    if packed is None or packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ValueError(f"{what} is missing or damaged: expected {size} bytes")
    bits = np.unpackbits(packed.numpy(), count=weight.numel())
    return torch.from_numpy(bits).to(weight).view_as(weight)


def _digest(net: nn.Module, by_layer: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the masked weights of all layers, in order."""
    digest = hashlib.sha256()
    for (name, layer), mask in _zipped(net, by_layer):
        digest.update(name.encode())
        digest.update((layer.weight.detach() * mask).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
