"""Taps: the values of layers, against what the layers returned, and what a forward that stops leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from ensemble.objectives.selection import parse_layer
from ensemble.teachers.layers import Layer, list_layers
from ensemble.teachers.taps import LOGITS, Tap, Tapped
from ensemble.teachers.teacher import Teacher
from models import ModelCard, create_model, network_input

CARD = ModelCard("tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3))


class Block(nn.Module):
    """One relu in place, called twice; a sum that torch writes into its first summand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn(self.conv(x)))
        y = self.conv(y)
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.block = Block()
        self.idle = nn.Linear(2, 2)
        self.head = nn.Linear(6, 4)
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.block(self.stem(x)) - 0.1)
        self.seen += 1
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().double().eval()
    net.block.bn.running_mean.normal_()
    net.block.bn.running_var.uniform_(0.5, 2)
    return net


def teacher_of(net: nn.Module, *taps: Tap, alone: bool = False, card: ModelCard = CARD) -> Teacher:
    teacher = Teacher("t", net, card, dtype=torch.float64)
    teacher.tap(taps, alone=alone)
    return teacher


def by_hand(net: Net, x: torch.Tensor) -> dict[Tap, torch.Tensor]:
    stem = net.stem(x)
    first = net.block.conv(stem)
    bn = net.block.bn(first)
    second = net.block.conv(bn.relu())
    out = (second + stem).relu()
    last = (out - 0.1).relu()
    return {
        Tap("stem"): stem,
        Tap("block.conv"): first,
        Tap("block.bn", side="in"): first,
        Tap("block.bn"): bn,
        Tap("block.relu", side="in"): bn,
        Tap("block.relu"): bn.relu(),
        Tap("block.conv", 2, "in"): bn.relu(),
        Tap("block.conv", 2): second,
        Tap("block.conv_1"): second,  # torch.fx's name of the second call
        Tap("block.add()"): second + stem,
        Tap("block.relu", 2): out,
        Tap("block"): out,
        Tap("sub()"): out - 0.1,
        Tap("relu()"): last,
        Tap("head", side="in"): last.mean((2, 3)),
        Tap(LOGITS): net.head(last.mean((2, 3))),
    }


def test_values_and_gradients_are_the_networks_own(net: Net) -> None:
    view = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    leaf, other = view.clone().requires_grad_(), view.clone().requires_grad_()
    expected = by_hand(net, network_input(other, CARD))
    teacher = teacher_of(net, *expected)
    teacher.rewrite()
    seen = teacher.observe(leaf)
    assert list(seen.taps) == list(expected)
    for tap, value in expected.items():
        torch.testing.assert_close(seen.taps[tap], value, msg=str(tap))
        weights = torch.randn(value.shape, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((seen.taps[tap] * weights).sum(), leaf, retain_graph=True)
        (wanted,) = torch.autograd.grad((value * weights).sum(), other, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, msg=str(tap))
    assert bool((seen.taps[Tap("block.bn")] < 0).any())  # what a hook that keeps no copy sees is rectified


def test_a_pass_stops_at_its_last_tap(net: Net) -> None:
    teacher = teacher_of(net, Tap("block.bn"), Tap("stem"), alone=True)
    assert isinstance(teacher.net, Net)
    before = teacher.net.seen
    view = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    seen = teacher.observe(view)
    assert teacher.net.seen == before and not seen.logits.any() and seen.moments.shape == (2, 6)
    whole = teacher.observe(view, whole=True)
    assert teacher.net.seen == before + 1 and bool(whole.logits.any()) and bool(whole.moments.any())
    torch.testing.assert_close(seen.taps[Tap("stem")], whole.taps[Tap("stem")])


def test_layers_are_listed_in_the_order_of_their_calls(net: Net) -> None:
    layers = list_layers(net, lambda n: net(torch.rand(n, 3, 8, 8, dtype=torch.float64)))
    assert layers[0] == Layer("stem", "Conv2d", 1, (3, 8, 8), (6, 4, 4))
    names = [layer.name for layer in layers]
    assert names == [
        *("stem", "block", "block.conv", "block.bn", "block.relu"),
        *("block.add()", "sub()", "relu()", "mean()", "head", "idle"),
    ]
    assert [layer.calls for layer in layers if layer.name in ("block.conv", "block.relu", "idle")] == [2, 2, 0]


class Channels(nn.Module):
    """Maps with their channels last, and tokens with a class token, as transformers have them."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 2, stride=2)
        self.last = nn.Identity()
        self.norm = nn.LayerNorm(4)
        self.tokens = nn.Identity()
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.conv(x).permute(0, 2, 3, 1))
        self.norm(x[..., :4])
        x = x.flatten(1, 2)
        x = self.tokens(torch.cat([x.mean(1, keepdim=True), x], 1))
        return self.head(x[:, 0])


class Joins(nn.Module):
    """Sixteen tokens, and a class token that joins them late, or registers alone."""

    def __init__(self, declared: int | None, token: str) -> None:
        super().__init__()
        if declared is not None:
            self.num_prefix_tokens = declared
        self.conv, self.early, self.late = nn.Conv2d(3, 5, 2, stride=2), nn.Identity(), nn.Identity()
        setattr(self, token, nn.Parameter(torch.zeros(1, 1, 5)))
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.early(self.conv(x).flatten(2).transpose(1, 2))
        return self.head(self.late(torch.cat([x.mean(1, keepdim=True), x], 1))[:, 0])


@pytest.mark.parametrize(
    ("declared", "token", "late"),
    [
        (1, "cls_token", (1, True)),
        (1, "reg_token", (1, False)),
        (None, "class_token", (1, True)),
        (None, "own", (None, False)),
    ],
)
def test_tokens_before_those_of_patches(declared: int | None, token: str, late: tuple[int | None, bool]) -> None:
    taps = Tap("early"), Tap("late")
    layouts = teacher_of(Joins(declared, token).double().eval(), *taps).profile().taps
    assert layouts[taps[0]] == Tapped(5, (16,), 0) and layouts[taps[1]] == Tapped(5, (17,), *late)


def test_a_network_within_another_says_its_tokens() -> None:
    wrapped = nn.Sequential(nn.Identity(), Joins(1, "cls_token")).double().eval()
    assert teacher_of(wrapped, Tap("1.late")).profile().taps[Tap("1.late")] == Tapped(5, (17,), 1, True)


def test_channels_come_first_however_they_lie() -> None:
    net = Channels().double().eval()
    taps = Tap("conv"), Tap("last"), Tap("norm"), Tap("tokens"), Tap("head")
    teacher = teacher_of(net, *taps)
    layouts = teacher.profile().taps
    assert [layouts[tap] for tap in taps] == [
        Tapped(5, (4, 4)),
        Tapped(5, (4, 4)),
        Tapped(4, (4, 4)),
        Tapped(5, (17,), 1),
        Tapped(4),
    ]
    seen = teacher.observe(torch.rand(3, 3, 8, 8, dtype=torch.float64)).taps
    torch.testing.assert_close(seen[Tap("conv")], seen[Tap("last")])
    torch.testing.assert_close(seen[Tap("conv")].flatten(2), seen[Tap("tokens")][:, :, 1:])
    example = teacher.profile().example(torch.device("cpu"))
    assert {tap: value.shape[1:] for tap, value in example.taps.items()} == {t: v.shape[1:] for t, v in seen.items()}


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("block.bm"), r"t has no layer 'block.bm'; did you mean 'block.bn'"),
        (
            Tap("nowhere_at_all"),
            r"t has no layer 'nowhere_at_all'; invert.py --list-layers, with the network as you named it, shows them",
        ),
        (Tap("block.conv", 3), r"t: block.conv#3: the layer is called 2 time\(s\)"),
        (Tap("idle"), r"t: idle: the layer does not run in eval mode"),
        (Tap("sub()", side="in"), r"of a function only what comes out can be had; leave out .in"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(net: Net, tap: Tap, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teacher_of(net, tap)


def test_a_value_that_belongs_to_no_image_is_refused() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.head = nn.Unflatten(3, (2, 4)), nn.Linear(192, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cut(x).flatten(1))

    with pytest.raises(ValueError, match=r"t: cut cannot be tapped: its value has shape \(2, 3, 8, 2, 4\)"):
        teacher_of(Windows().double(), Tap("cut"))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "timm/convnext_atto", "timm/vit_tiny_patch16_224"])
def test_networks_of_the_zoos(name: str) -> None:
    """Every third layer or so, against a hook that copies at once."""
    net, card = create_model(f"{name}@random")
    net.eval()
    x = torch.rand(2, 3, card.input_size, card.input_size)
    layers = [layer.name for layer in list_layers(net, lambda n: net(x[:n])) if layer.output and "()" not in layer.name]
    chosen = layers[1 :: max(1, len(layers) // 12)]
    caught: dict[str, Any] = {}

    def hook(layer: str) -> Any:
        def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
            caught.setdefault(layer, output.detach().clone())

        return keep

    for layer in chosen:
        net.get_submodule(layer).register_forward_hook(hook(layer))
    with torch.no_grad():
        net(network_input(x, card))
        teacher = Teacher("t", net, card)
        teacher.tap([Tap(layer) for layer in chosen], alone=False)
        seen = teacher.observe(x).taps
    for layer in chosen:
        value, expected = seen[Tap(layer)], caught[layer]
        if value.shape != expected.shape:
            expected = expected.movedim(-1, 1)
        assert float((value - expected).norm()) <= 1e-4 * float(expected.norm()), layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parts_of_a_norm_with_its_own_activation(dtype: torch.dtype) -> None:
    """timm's BatchNorm holds its activation: both sides of it are taps, and no moment or gradient changes."""

    class Acting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.bn = BatchNormAct2d(6, act_layer=nn.ReLU6)
            self.last = BatchNormAct2d(6, act_layer=nn.SiLU)
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.last(self.bn(self.conv(x))).mean((2, 3)))

    torch.manual_seed(0)
    net = Acting().eval()
    for norm in (net.bn, net.last):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    net = net.double() if dtype == torch.float64 else net
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    taps = [Tap("bn.act", side="in"), Tap("bn.act"), Tap("bn.batch_norm()"), Tap("last")]
    plain, tapped = (Teacher("t", net, CARD, dtype=dtype) for _ in range(2))
    tapped.tap(taps, alone=False)
    y = net.conv(network_input(x, CARD))
    y = F.batch_norm(y, net.bn.running_mean, net.bn.running_var, net.bn.weight, net.bn.bias, eps=net.bn.eps)
    close = {"atol": 1e-9, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 0.1, "rtol": 0.05}
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    seen, expected = tapped.observe(leaf), plain.observe(other)
    for tap, value in zip(taps, (y, F.relu6(y), y, net.last(F.relu6(y))), strict=True):
        torch.testing.assert_close(seen.taps[tap], value, **close)
    for name in ("logits", "moments"):
        torch.testing.assert_close(getattr(seen, name), getattr(expected, name), **close)
    gradients = [torch.autograd.grad(o.logits.square().sum(), at)[0] for o, at in ((seen, leaf), (expected, other))]
    torch.testing.assert_close(*gradients, **close)


@pytest.mark.parametrize("mixes", [True, False])
def test_sequences_have_their_channels_first(mixes: bool) -> None:
    """Conv1d and BatchNorm1d see (N, C, L), tokens are (N, T, C)."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6 if mixes else 5, 3)
            self.mix = nn.Conv1d(6, 5, 1) if mixes else nn.Identity()
            self.bn, self.act = nn.BatchNorm1d(5), nn.ReLU()
            self.head = nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.bn(self.mix(self.stem(x).flatten(2)))).mean(2))

    torch.manual_seed(0)
    net = Sequence().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    taps = [Tap("mix", side="in"), Tap("mix"), Tap("bn"), Tap("act"), Tap("head")]
    teacher = teacher_of(net, *taps)
    seen = teacher.observe(x).taps
    mixed = net.mix(net.stem(network_input(x, CARD)).flatten(2))
    expected = [net.stem(network_input(x, CARD)).flatten(2), mixed, net.bn(mixed), net.bn(mixed).relu()]
    for tap, value in zip(taps, expected, strict=False):
        torch.testing.assert_close(seen[tap], value)
        assert teacher.profile().taps[tap] == Tapped(value.shape[1], (36,))


def test_layers_called_in_and_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("in", nn.Conv2d(3, 6, 1))
            self.out = nn.Conv2d(6, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.get_submodule("in")(x)) + 1

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(x).mean((2, 3)))

    net = Whole().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    view = network_input(x, CARD)
    first = net.block.get_submodule("in")(view)
    expected = {"block.out": net.block.out(first), "block.in": first, "block": net.block(view), "head.out": net(view)}
    expected["block.out.in"] = first
    taps = {text: parse_layer(text)[1] for text in expected}
    seen = teacher_of(net, *taps.values()).observe(x).taps
    for text, value in expected.items():
        torch.testing.assert_close(seen[taps[text]], value)


class Named(nn.Module):
    """Layers with names that are also something else: of the output, of calls, of a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 6, 3), nn.ReLU()
        self.add_module("stem#2", nn.Conv2d(6, 6, 1))
        self.add_module("c#d", nn.Conv2d(6, 6, 1))
        self.again = self.relu
        self.logits = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.get_submodule("c#d")(self.again(self.get_submodule("stem#2")(self.relu(self.stem(x)))))
        return 3 * self.logits(x.mean((2, 3))) - 1


def test_names_that_are_also_something_else() -> None:
    """`logits` is what the network says, also where a layer is called so; the layer has calls and an input."""
    net = Named().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    second = net.get_submodule("stem#2")(net.relu(net.stem(network_input(x, CARD))))
    last = net.get_submodule("c#d")(net.relu(second))
    pooled = last.mean((2, 3))
    expected = {"logits": 3 * net.logits(pooled) - 1, "logits.in": pooled, "logits#1": net.logits(pooled)}
    expected |= {"stem#2": second, "c#d": last, "c#d.in": net.relu(second), "relu#2": net.relu(second)}
    taps = {text: parse_layer(text)[1] for text in expected}
    assert [str(tap) for tap in taps.values()] == list(taps)
    seen = teacher_of(net, *taps.values()).observe(x).taps
    for text, value in expected.items():
        torch.testing.assert_close(seen[taps[text]], value, msg=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logits#5", r"t: logits#5: the layer is called 1 time\(s\)"),
        ("again", "t: again is the same layer as relu; write relu"),
        ("relu_1#2", "t has no layer 'relu_1'"),
        ("c#e", "t has no layer 'c#e'; did you mean 'c#d'"),
    ],
)
def test_names_that_are_nothing(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teacher_of(Named().double().eval(), parse_layer(text)[1])


@pytest.mark.parametrize("text", ["logits.in", "logits#1", "logits#2"])
def test_what_the_network_says_is_no_layer(net: Net, text: str) -> None:
    with pytest.raises(ValueError, match=f"t: {text}: it has no layer 'logits'; write logits"):
        teacher_of(net, parse_layer(text)[1])


def test_linear_layers_have_their_channels_last_also_of_cubes() -> None:
    """Eight channels of 8 x 8 positions: no number tells which they are."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.same, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.same(self.wide(x.permute(0, 2, 3, 1))).mean((1, 2)))

    net = Last().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    wide = net.wide(network_input(x, CARD).permute(0, 2, 3, 1))
    expected = {Tap("wide"): wide, Tap("same", side="in"): wide, Tap("same"): net.same(wide)}
    seen = teacher_of(net, *expected).observe(x).taps
    for tap, value in expected.items():
        torch.testing.assert_close(seen[tap], value.movedim(-1, 1), msg=str(tap))


def test_of_several_tensors_the_first() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix = nn.Conv2d(3, 6, 4, stride=4), nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.stem(x).flatten(2).mT
            mixed, _ = self.mix(key=tokens, query=tokens * 2, value=tokens)
            return self.head(mixed.mean(1))

    torch.manual_seed(0)
    net = Attending().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    seen = teacher_of(net, Tap("mix"), Tap("mix", side="in")).observe(x).taps
    tokens = net.stem(network_input(x, CARD)).flatten(2).mT
    torch.testing.assert_close(seen[Tap("mix")], net.mix(tokens * 2, tokens, tokens)[0].mT)
    torch.testing.assert_close(seen[Tap("mix", side="in")], tokens.mT)
