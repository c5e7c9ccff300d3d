"""The training loop, its augmentations, recipes and weights: hand values, NumPy twins, resume to the bit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import to_plain
from ensemble.config.yaml_files import load_yaml
from ensemble.data.labelled import LabelledImages
from ensemble.machine import hardware
from ensemble.machine.rng import generator
from ensemble.training.augment import Augmentation, _beta, crop_and_flip, cutmix, cutout, mixup, resized_crop
from ensemble.training.hard_labels import mixed_cross_entropy
from ensemble.training.loop import Progress, State, train
from ensemble.training.reading import evaluate, recalibrate_bn
from ensemble.training.recipe import DataSpec, TrainingRecipe, parse_training_recipe
from ensemble.training.run import build_network
from ensemble.training.schedule import Schedule
from ensemble.training.weights import Provenance, export_weights, save_weights
from models import ModelCard
from models._bundled import read_bundled, with_bundled
from models.cifar import CifarResNet

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes/training").glob("*.yaml"))
CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CARD = ModelCard("toy", "toy", 8, 2, mean=MEAN, std=STD, class_names=("red", "blue"), label_space="toy")


def rng(seed: int = 0) -> torch.Generator:
    return generator(seed, "test")


def toy_set(n: int = 96, seed: int = 0) -> LabelledImages:
    """Two classes, redder and bluer, in noise that a single pixel drowns in."""
    labels = torch.arange(n) % 2
    noise = torch.randn(n, 3, 8, 8, generator=rng(seed)) * 40 + 120
    noise[:, 0] += torch.where(labels == 0, 15, -15)[:, None, None]
    return LabelledImages(noise.clamp(0, 255).to(torch.uint8), labels, ("red", "blue"))


def toy_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )


def test_a_head_of_zeros_learns_in_bf16() -> None:
    """Its first logits are all 0, which are no probabilities, however few bits there are."""
    head = nn.Linear(192, 200)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    names = tuple(map(str, range(200)))
    data = LabelledImages(toy_set().images, torch.arange(96), names)
    schedule = Schedule(epochs=1, batch_size=24, lr=0.1, precision="bf16")
    given = dict(augmentation=Augmentation(crop_padding=0), seed=1, device=CPU, compile_net=False)
    card = ModelCard("wide", "toy", 8, 200, mean=MEAN, std=STD)
    train(nn.Sequential(nn.Flatten(), head), card, data, data.subset(slice(4)), schedule=schedule, **given)
    assert bool(head.weight.detach().abs().max() > 1e-3)


def test_a_softmax_at_the_end_changes_nothing_of_what_is_learned() -> None:
    plain, ended = toy_net(), nn.Sequential(toy_net(), nn.Softmax(1))
    schedule = Schedule(epochs=2, batch_size=24, lr=0.1, precision="fp32")
    for net in (plain, ended):
        given = dict(augmentation=Augmentation(crop_padding=0), seed=1, device=CPU, compile_net=False)
        train(net, CARD, toy_set(), toy_set(24, 1), schedule=schedule, **given)
    for found, expected in zip(ended.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def trained(
    schedule: Schedule,
    augmentation: Augmentation | None = None,
    net: nn.Module | None = None,
    card: ModelCard = CARD,
    **options,
) -> nn.Module:
    return train(
        *(net or toy_net(), card, toy_set(), toy_set(64, seed=1)),
        schedule=schedule,
        augmentation=augmentation or Augmentation(crop_padding=1),
        seed=3,
        device=CPU,
        compile_net=False,
        **options,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- the loop ------------------------------------------------------------------------------------------

SHORT = Schedule(epochs=6, batch_size=16, lr=0.1, precision="fp32")


def test_shared_weights_are_averaged_once_a_step() -> None:
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(192, out, bias=False) for out in (192, 192, 2)))
    net[2].weight = net[1].weight
    before: list[torch.Tensor] = []
    net[1].register_forward_pre_hook(lambda module, _: before.append(module.weight.detach().clone()))
    found = trained(replace(SHORT, epochs=1, ema=0.9), net=net)
    average = before[0]
    for step in (*before[1:6], net[1].weight.detach()):  # what runs after six steps is the average
        average = average.lerp(step, 0.1)
    torch.testing.assert_close(found[1].weight, average)


def test_precision_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    net = toy_net()
    net.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for native in (False, True):
        monkeypatch.setattr(hardware, "computes_in_bf16", lambda device, native=native: native)
        trained(replace(SHORT, epochs=1, precision="auto"), net=net)
        assert seen[0] is native
        seen.clear()


@pytest.mark.parametrize(
    ("schedule", "augmentation"),
    [
        (SHORT, Augmentation(crop_padding=1)),
        (replace(SHORT, precision="bf16", label_smoothing=0.1), Augmentation(crop_padding=0, cutout=2)),
        (replace(SHORT, ema=0.8), Augmentation(crop_padding=1, cutmix=1.0, mix_probability=0.5)),
    ],
)
def test_a_tiny_network_learns(schedule: Schedule, augmentation: Augmentation) -> None:
    seen: list[Progress] = []
    net = trained(
        schedule,
        augmentation,
        measure=lambda net, epoch: {"epochs so far": epoch},
        after_epoch=lambda progress, state: seen.append(progress),
    )
    assert [p.epoch for p in seen] == [p.measured["epochs so far"] for p in seen] == [1, 2, 3, 4, 5, 6]
    assert not net.training and 0.3 < seen[0].agreement < seen[-1].agreement <= 1
    assert seen[-1].loss < seen[0].loss
    test_set = toy_set(64, seed=1)
    assert evaluate(toy_net(), CARD, test_set, CPU) < 0.75
    assert evaluate(net, CARD, test_set, CPU) > 0.95


class OneChannel(nn.Module):
    """A network of grey images, which says other things beside its logits."""

    def __init__(self, classes: int, shape: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Linear(8, classes)
        self.shape = shape

    def forward(self, x: torch.Tensor) -> Any:
        assert x.shape[1:] == (1, 8, 8)
        features = self.norm(self.conv(x).mean((2, 3)))
        return self.shape(self.head(features), features)


@pytest.mark.parametrize(
    ("classes", "shape"),
    [
        (2, lambda logits, features: (logits, features)),
        (2, lambda logits, features: {"features": features, "logits": logits}),
        (1, lambda logits, features: logits),
        (1, lambda logits, features: logits[:, 0]),
    ],
    ids=["tuple", "mapping", "one logit", "one logit, flat"],
)
def test_a_network_of_one_channel_and_outputs_of_any_form_learn(classes: int, shape: Any) -> None:
    """The classes differ in red alone, of which luminance has 30 %."""
    card = ModelCard("grey", "toy", 8, classes, mean=(0.5,), std=(0.25,))
    net = trained(SHORT, net=OneChannel(classes, shape), card=card)
    assert evaluate(OneChannel(classes, shape), card, toy_set(64, seed=1), CPU) < 0.75
    assert evaluate(net, card, toy_set(64, seed=1), CPU) > 0.9


def test_logits_that_are_not_the_cards() -> None:
    with pytest.raises(ValueError, match=r"toy: its card says 3 classes, .* for 16 images has shape \(16, 2\)"):
        trained(SHORT, card=replace(CARD, num_classes=3, class_names=()))


def dropping_net() -> nn.Module:
    *body, last = toy_net()
    return nn.Sequential(*body, nn.Dropout(0.3), last)


def test_what_a_network_draws_follows_the_seed() -> None:
    first = trained(SHORT, net=dropping_net())
    torch.manual_seed(99)
    assert same(trained(SHORT, net=dropping_net()), first)


@pytest.mark.parametrize(("ema", "optimizer"), [(0.0, "sgd"), (0.9, "sgd"), (0.0, "adamw")])
def test_a_resumed_run_equals_the_uninterrupted_one(ema: float, optimizer: str) -> None:
    schedule, augmentation = (
        replace(SHORT, ema=ema, optimizer=optimizer),
        Augmentation(crop_padding=1, cutout=2, mixup=0.4),
    )
    states: list[bytes] = []
    whole = trained(
        *(schedule, augmentation, dropping_net()), after_epoch=lambda progress, state: states.append(to_bytes(state))
    )
    assert len(states) == 6
    for done in (2, 6):  # at 6, nothing is left to do
        seen: list[int] = []
        resumed = trained(
            schedule,
            augmentation,
            dropping_net(),
            saved=from_bytes(states[done - 1]),
            after_epoch=lambda progress, state, seen=seen: seen.append(progress.epoch),
        )
        assert seen == [*range(done + 1, 7)]
        assert same(resumed, whole)
    assert not same(trained(replace(schedule, lr=0.05), augmentation, dropping_net()), whole)


def to_bytes(state: State) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(data), weights_only=True)


@pytest.mark.parametrize("change", ["net", "ema", "epoch", "optimizer"])
def test_a_state_of_another_run_is_refused(change: str) -> None:
    states: list[State] = []
    trained(
        replace(SHORT, epochs=1, ema=0.9),
        after_epoch=lambda progress, state: states.append(from_bytes(to_bytes(state))),
    )
    (state,) = states
    if change in ("ema", "epoch"):
        del state[change]
    elif change == "net":
        state["net"]["0.weight"] = torch.zeros(4, 3, 3, 3)
    else:
        state["optimizer"]["param_groups"].pop()
    with pytest.raises(ValueError, match="the saved state is not one of this network and schedule") as error:
        trained(replace(SHORT, ema=0.9), saved=state)
    assert "\n" not in str(error.value)


def test_weight_decay_acts_on_matrices_only() -> None:
    frozen = Augmentation(crop_padding=0)
    with_decay, without = (
        trained(replace(SHORT, epochs=1, batch_size=96, weight_decay=decay, recalibrate_bn=False), frozen)
        for decay in (0.5, 0.0)
    )
    start, lr = toy_net(), 0.1  # one step, Nesterov: p - lr (1 + momentum) (g + decay p)
    for (name, a), b, p in zip(with_decay.named_parameters(), without.parameters(), start.parameters(), strict=True):
        expected = -lr * 1.9 * 0.5 * p if p.ndim > 1 else torch.zeros_like(p)
        torch.testing.assert_close(a - b, expected, atol=1e-6, rtol=1e-5, msg=name)
        assert not torch.equal(b, p), f"{name} is not trained"


def test_adamw_by_hand() -> None:
    """One step: p (1 - lr decay) - lr g / (|g| + eps), which is lr a weight; one-dimensional tensors do not decay."""
    schedule = replace(SHORT, epochs=1, batch_size=96, optimizer="adamw", weight_decay=0.5, recalibrate_bn=False)
    net, start = trained(schedule, Augmentation(crop_padding=0)), toy_net()
    for (name, a), p in zip(net.named_parameters(), start.parameters(), strict=True):
        moved = (a - p * (1 - 0.1 * 0.5 * (p.ndim > 1))).detach().abs()
        assert float(moved.max()) == pytest.approx(0.1, rel=1e-3), name


def test_learning_rate_by_hand() -> None:
    schedule = Schedule(lr=0.4, warmup=0.2)
    rates = [schedule.lr_at(step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[12] == pytest.approx(0.2)  # half way down the cosine
    assert rates[19] == pytest.approx(0.4 * 0.5 * (1 + np.cos(np.pi * 15 / 16)))
    assert Schedule(lr=0.4, warmup=0.0).lr_at(0, 20) == pytest.approx(0.4)


def test_mixed_cross_entropy_equals_numpy() -> None:
    logits = torch.randn(5, 4, generator=rng(), dtype=torch.float64)
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 3, 0, 2])
    log_p = logits.numpy() - np.log(np.exp(logits.numpy()).sum(1, keepdims=True))
    target = 0.7 * np.eye(4)[first] + 0.3 * np.eye(4)[second]
    target = 0.9 * target + 0.1 / 4
    loss = mixed_cross_entropy(logits, (first, second, 0.7), smoothing=0.1)
    assert float(loss) == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-12)


def test_evaluate_by_hand() -> None:
    """The network sees (rgb - mean) / std; its logits are the channel means, the label the larger one."""

    class Channels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    images = torch.zeros(600, 3, 2, 2, dtype=torch.uint8)
    images[:, 0], images[:, 1] = 153, 128  # (0.6 - 0.5) / 0.2 = 0.5; (0.502 - mean) / 0.25 = 0.41 or 0.81
    data = LabelledImages(images, torch.tensor([0] * 450 + [1] * 150), ("a", "b", "c"))
    card = ModelCard("channels", "toy", 2, 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    assert evaluate(Channels(), card, data, CPU) == 0.75
    assert evaluate(Channels(), replace(card, mean=(0.5, 0.3, 0.3)), data, CPU) == 0.25


def test_recalibrated_statistics_equal_numpy() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.BatchNorm2d(3, affine=False)).double()
    nn.init.uniform_(net[0].weight)
    net[0].running_mean.fill_(9)
    inputs = torch.randn(12, 3, 4, 5, generator=rng(), dtype=torch.float64) * 3 + 1
    recalibrate_bn(net, inputs, batch_size=4)
    weight = net[0].weight.detach().numpy()[:, None, None]
    batches = list(inputs.numpy().reshape(3, 4, 3, 4, 5))
    normalised = [
        (b - b.mean((0, 2, 3), keepdims=True)) / np.sqrt(b.var((0, 2, 3), keepdims=True) + 1e-5) for b in batches
    ]
    for layer, seen in ((net[0], batches), (net[2], [np.maximum(weight * b, 0) for b in normalised])):
        np.testing.assert_allclose(layer.running_mean, np.mean(seen, (0, 1, 3, 4)), rtol=1e-6)
        np.testing.assert_allclose(layer.running_var, np.mean([b.var((0, 2, 3), ddof=1) for b in seen], 0), rtol=1e-6)
    np.testing.assert_allclose(net[0].running_mean, inputs.numpy().mean((0, 2, 3)), rtol=1e-6)
    assert net[0].momentum == 0.3 and not net.training


def test_what_draws_rests_while_statistics_are_recalibrated() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
    inputs = torch.randn(12, 3, 4, 4, generator=rng()) + 2
    recalibrate_bn(net, inputs)
    np.testing.assert_allclose(net[1].running_mean, inputs.numpy().mean((0, 2, 3)), rtol=1e-5)
    assert not net.training and not net[0].training


def test_layers_of_every_rank_are_recalibrated() -> None:
    layers = {rank: kind(3) for rank, kind in ((0, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d))}
    fixed = nn.BatchNorm2d(3, track_running_stats=False)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([*layers.values(), fixed])

        def forward(self, x: torch.Tensor) -> None:
            for rank, layer in layers.items():
                layer(x.mean((2, 3)) if rank == 0 else x if rank == 2 else x[:, :, None])
            fixed(x)

    inputs = torch.randn(10, 3, 4, 4, generator=rng(), dtype=torch.float64) * 2 + 1
    recalibrate_bn(Net().double(), inputs)
    for rank, layer in layers.items():
        seen = inputs.numpy().mean((2, 3)) if rank == 0 else np.moveaxis(inputs.numpy(), 1, -1).reshape(-1, 3)
        np.testing.assert_allclose(layer.running_mean, seen.mean(0), rtol=1e-6)
        np.testing.assert_allclose(layer.running_var, seen.var(0, ddof=1), rtol=1e-6)


def test_recalibration_uses_a_set_smaller_than_a_batch() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    inputs = torch.randn(5, 3, 4, 4, generator=rng()) + 2
    recalibrate_bn(net, inputs)
    np.testing.assert_allclose(net[0].running_mean, inputs.numpy().mean((0, 2, 3)), rtol=1e-5)


def test_recalibration_leaves_no_image_out() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    inputs = torch.randn(9, 3, 4, 4, generator=rng())
    recalibrate_bn(net, inputs, batch_size=4)  # 3, 3, 3
    np.testing.assert_allclose(net[0].running_mean, inputs.numpy().mean((0, 2, 3)), rtol=1e-5)


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="96 images are fewer than one batch of 97"):
        trained(replace(SHORT, batch_size=97))


def test_a_loss_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite in epoch 1; lower the learning rate"):
        trained(replace(SHORT, lr=1e30))


# --- augmentations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize(("height", "width", "padding"), [(6, 6, 2), (5, 7, 3), (4, 4, 0)])
def test_crop_and_flip_equals_numpy(height: int, width: int, padding: int, mirror: bool) -> None:
    images = torch.rand(16, 3, height, width, generator=rng(1))
    moved = crop_and_flip(images, padding, mirror, rng())
    draws = rng()
    dy = torch.randint(0, 2 * padding + 1, (16, 1), generator=draws)[:, 0].tolist()
    dx = torch.randint(0, 2 * padding + 1, (16, 1), generator=draws)[:, 0].tolist()
    flips = (torch.rand(16, 1, generator=draws) < 0.5)[:, 0].tolist()
    assert len(set(flips)) == 2
    for image, result, y, x, flip in zip(images.numpy(), moved.numpy(), dy, dx, flips, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        crop = padded[:, y : y + height, x : x + width]
        np.testing.assert_array_equal(result, crop[:, :, ::-1] if flip and mirror else crop)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9)])
def test_resized_crops_equal_numpy(height: int, width: int) -> None:
    """A ramp x + 10 y is read where the part's pixels lie, up to the border, which is held."""
    ramp = torch.arange(width) + 10.0 * torch.arange(height)[:, None]
    cropped = resized_crop(ramp.expand(50, 3, height, width), 0.3, rng())
    area, ratio, x, y = torch.rand(4, 50, generator=rng()).numpy()
    area = 0.3 + 0.7 * area
    stretch = np.exp((2 * ratio - 1) * np.log(4 / 3))  # width over height, in pixels
    w = np.minimum(np.sqrt(area * height * width * stretch), width)
    h = np.minimum(np.sqrt(area * height * width / stretch), height)
    assert (w / h).min() > 0.74 and (w / h).max() < (1.34 if height == width else 1.6) and area.min() < 0.4
    for i in range(50):
        columns = x[i] * (width - w[i]) + (np.arange(width) + 0.5) * w[i] / width - 0.5
        rows = y[i] * (height - h[i]) + (np.arange(height) + 0.5) * h[i] / height - 0.5
        expected = columns.clip(0, width - 1) + 10 * rows.clip(0, height - 1)[:, None]
        np.testing.assert_allclose(cropped[i, 1], expected, atol=1e-4)


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_resized_crops_that_are_off_draw_nothing(off: float) -> None:
    images, labels = torch.rand(5, 3, 8, 8, generator=rng(1)), torch.arange(5)
    black = torch.zeros(3, 1, 1)
    seen = [Augmentation(crop_padding=1, crop_scale=scale)(images, labels, rng(), black)[0] for scale in (off, 0, 0.5)]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_a_black_border_is_black_as_the_network_takes_it() -> None:
    images, black = torch.rand(40, 3, 8, 8, generator=rng(1)), torch.tensor([-1.0, -2.0, -3.0])[:, None, None]
    bordered = Augmentation(crop_padding=2, crop_border="black", flip=False)
    made = bordered(images, torch.arange(40), rng(), black)[0]
    shifted = Augmentation(crop_padding=2, flip=False)(images, torch.arange(40), rng(), black)[0]
    border = torch.isclose(made, black).all(1)
    assert 0 < int(border.sum()) < made[:, 0].numel() / 2
    inside = ~border[:, None].expand_as(made)
    assert torch.allclose(made[inside], shifted[inside], atol=1e-6)  # the same shifts, by the same numbers


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_cutout_equals_numpy(side: int) -> None:
    images = torch.rand(20, 3, 6, 8, generator=rng(1)) + 1
    result = cutout(images, side, rng())
    draws = rng()
    cy = torch.randint(0, 6, (20, 1), generator=draws)[:, 0].tolist()
    cx = torch.randint(0, 8, (20, 1), generator=draws)[:, 0].tolist()
    expected = images.numpy().copy()
    for i, (y, x) in enumerate(zip(cy, cx, strict=True)):
        top, left = y - side // 2, x - side // 2
        expected[i, :, max(0, top) : top + side, max(0, left) : left + side] = 0
    np.testing.assert_array_equal(result.numpy(), expected)
    assert max(int((image[0] == 0).sum()) for image in result) == side * side


def constant_images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i holds i everywhere, and its label is i."""
    return torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 3, 8, 10), torch.arange(n)


def test_mixup_by_hand() -> None:
    images, labels = constant_images(6)
    mixed, (first, second, share) = mixup(images, labels, 0.4, rng())
    assert torch.equal(first, labels) and 0 < share < 1 and sorted(second.tolist()) == [*range(6)]
    torch.testing.assert_close(mixed[:, 1, 2, 3], share * first + (1 - share) * second)


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_labels_are_shares_of_pixels(seed: int) -> None:
    images, labels = constant_images(6)
    mixed, (first, second, share) = cutmix(images, labels, 1.0, rng(seed))
    assert 0 < share <= 1
    for image, mine, other in zip(mixed, first.tolist(), second.tolist(), strict=True):
        own = float((image == mine).float().mean())
        assert own == pytest.approx(share if other != mine else 1.0)
        assert set(image.unique().tolist()) <= {mine, other}
        changed = (image[0] != mine).nonzero()  # a rectangle
        if len(changed):
            rows, columns = (changed.amax(0) - changed.amin(0) + 1).tolist()
            assert rows * columns == len(changed)
    assert float(images[3].mean()) == 3  # the batch itself is left alone


@pytest.mark.parametrize("alpha", [1e-4, 1e-3, 0.2, 1.0, 3.0])
def test_beta_has_the_moments_of_its_law(alpha: float) -> None:
    draws, source = [], rng()
    for _ in range(4000):
        draws.append(_beta(alpha, source))
    assert np.mean(draws) == pytest.approx(0.5, abs=0.03)
    assert np.var(draws) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


# --- recipes and networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_of_bundled_weights(file: Path) -> None:
    recipe = parse_training_recipe(load_yaml(file))
    assert recipe.model == f"{file.stem}@random"
    net, card = build_network(recipe.model, recipe.seed)
    free = {name for name, p in net.named_parameters() if p.requires_grad}
    scores = {name for name, _ in net.named_parameters() if name.endswith("scores")}
    assert net.training and free == (scores or {name for name, _ in net.named_parameters()}) and card.name == file.stem
    assert recipe.data == DataSpec("data/cifar10-jpeg.tar.xz") and recipe.compile


def test_random_weights_come_from_the_seed() -> None:
    before = torch.get_rng_state()
    net, _ = build_network("resnet20_cifar@random", 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert same(net, CifarResNet(20))
    assert not same(build_network("resnet20_cifar@random", 6)[0], net)


def test_trained_weights_are_trained_further() -> None:
    net, card = build_network("resnet20_cifar", 0)
    assert all(p.requires_grad for p in net.parameters()) and card.weights["cifar10"].source == "bundled"
    with pytest.raises(ValueError, match="the scores of a subnet are learned from the start; ask for @random"):
        build_network("resnet20_popup_cifar", 0)


def test_an_unknown_network() -> None:
    with pytest.raises(ValueError, match="unknown network 'nothing'"):
        build_network("nothing@random", 0)


VALID = {"model": "resnet20_cifar@random", "data": {"path": "x"}}


def test_all_mistakes_of_a_recipe_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_training_recipe(
            {
                "model": "resnet20_cifar@random",
                "data": {"pth": "x"},
                "schedule": {"epochs": 0, "momentum": 0, "precison": "fp32", "precision": "fp8"},
                "augmentation": {"cutout": -1, "flip": "yes"},
                "seed": 2**64,
            }
        )
    assert sorted(line.split(":")[0] for line in error.value.problems) == [
        "augmentation.cutout",
        "augmentation.flip",
        "data.path",
        "data.pth",
        "schedule.epochs",
        "schedule.momentum",
        "schedule.precision",
        "schedule.precison",
        "seed",
    ]


@pytest.mark.parametrize(
    ("path", "last_good", "first_bad"),
    [
        ("schedule.epochs", 1, 0),
        ("schedule.batch_size", 2, 1),
        ("schedule.lr", 1e-9, 0),
        ("schedule.warmup", 0, -1e-9),
        ("schedule.warmup", 1, 1.001),
        ("schedule.momentum", 1e-9, 0),
        ("schedule.momentum", 0.999, 1),
        ("schedule.weight_decay", 0, -1e-9),
        ("schedule.label_smoothing", 0, -1e-9),
        ("schedule.label_smoothing", 0.999, 1),
        ("schedule.ema", 0, -1e-9),
        ("schedule.ema", 0.999, 1),
        ("augmentation.crop_padding", 0, -1),
        ("augmentation.crop_scale", 0, -1e-9),
        ("augmentation.crop_scale", 1, 1.001),
        ("augmentation.cutout", 0, -1),
        ("augmentation.mixup", 0, -1e-9),
        ("augmentation.cutmix", 0, -1e-9),
        ("augmentation.mix_probability", 0, -1e-9),
        ("augmentation.mix_probability", 1, 1.001),
        ("data.size", 1, 0),
        ("seed", -(2**63), -(2**63) - 1),
        ("seed", 2**64 - 1, 2**64),
    ],
)
def test_bounds(path: str, last_good: float, first_bad: float) -> None:
    *above, name = path.split(".")

    def recipe(value: float) -> TrainingRecipe:
        data: dict[str, Any] = {**VALID}
        inner = data
        for key in above:
            inner[key] = {**data.get(key, {})}
            inner = inner[key]
        inner[name] = value
        return parse_training_recipe(data)

    held = to_plain(recipe(last_good))
    for key in path.split("."):
        held = held[key]
    assert held == last_good
    with pytest.raises(ConfigError) as error:
        recipe(first_bad)
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(f"{path}: must be")


def test_mixup_and_cutmix_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^mixup and cutmix exclude each other; set one of them to 0$"):
        Augmentation(mixup=0.2, cutmix=1.0)
    with pytest.raises(ConfigError, match=r"^augmentation: mixup and cutmix exclude each other"):
        parse_training_recipe({**VALID, "augmentation": {"mixup": 0.2, "cutmix": 1.0}})


# --- weights -------------------------------------------------------------------------------------------


def test_weights_are_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    net = toy_net()
    save_weights(net, tmp_path / "net.safetensors", CARD)
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata = file.metadata()
    mine, theirs = (tmp_path / "net.safetensors").read_bytes(), save(state, metadata)
    start = 8 + int.from_bytes(mine[:8], "little")
    assert mine[:8] == theirs[:8] and mine[start:] == theirs[start:]
    assert json.loads(mine[8:start]) == json.loads(theirs[8:start])  # the library's metadata has an order that varies


def test_exported_weights_are_what_models_reads(tmp_path: Path) -> None:
    net, test_set = trained(SHORT), toy_set(64, seed=1)
    accuracy = export_weights(net, CARD, tmp_path, Provenance("toys", "make toys"), test_set, CPU)
    bundled = with_bundled(CARD, tmp_path)
    record = bundled.weights["toy"]
    assert bundled.default_weights == "toy" and record.accuracy == accuracy
    assert (record.licence, record.trained_on, record.command) == ("MIT", "toys", "make toys")
    tensors = read_bundled(record, tmp_path).tensors
    state = net.state_dict()
    assert set(tensors) == {key for key in state if "num_batches" not in key}
    for key, value in tensors.items():
        assert value.dtype == (torch.float32 if "running" in key else torch.float16)
        assert torch.equal(value, state[key].to(value.dtype))
    twin = toy_net()
    twin.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    assert evaluate(twin, CARD, test_set, CPU) == accuracy
    assert sorted(file.name for file in tmp_path.iterdir()) == ["toy.json", "toy.safetensors"]
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"0\.weight of toy do not fit into fp16"):
        export_weights(net, CARD, tmp_path, Provenance("toys", "make toys"), test_set, CPU)
