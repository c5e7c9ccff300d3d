"""What a student is told: hard labels as ever, stored and live ones against plain PyTorch; classes by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_datasets import write_dataset
from torch import nn

from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse
from ensemble.data.labelled import LabelledImages
from ensemble.machine.rng import generator
from ensemble.training.augment import Augmentation
from ensemble.training.lessons import Hard, Lesson, Live, Soft, Stored
from ensemble.training.loop import train
from ensemble.training.pool import Pool, Source, read_pool
from ensemble.training.reading import recalibrate_bn
from ensemble.training.schedule import Schedule
from models import ModelCard, create_model, model_card, network_input, register_model
from models._table import TABLE
from models.cifar import CIFAR10_CLASSES

CPU = torch.device("cpu")
FP32 = Schedule(precision="fp32")
CARD = ModelCard("student", "toy", 32, 10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), class_names=CIFAR10_CLASSES)
A, B = "resnet20_cifar", "mobilenetv2_slim_cifar"


def noise(n: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=generator(0, "noise"), dtype=torch.uint8)


def said(seed: int, n: int = 8) -> torch.Tensor:
    return (3 * torch.randn(n, 10, generator=generator(seed, "said"))).half()


def pool_of(stored: dict[str, torch.Tensor], n: int = 8) -> Pool:
    data = LabelledImages(noise(n), torch.arange(n) % 10, CIFAR10_CLASSES)
    return Pool(
        data, 32, {name: Source(name, None, CIFAR10_CLASSES) for name in stored}, stored, "digest", CIFAR10_CLASSES
    )


STUDENT = torch.randn(4, 10, generator=generator(9, "student"))
VIEWS = torch.randn(4, 3, 32, 32, generator=generator(9, "views"))
PLAIN = (torch.tensor([5, 0, 3, 7]), torch.tensor([5, 0, 3, 7]), 1.0)
PAIRS = [(5, 1), (0, 2), (3, 2), (7, 6)]
MIXED = (torch.tensor([5, 0, 3, 7]), torch.tensor([1, 2, 2, 6]), 0.3)


def reach(z: torch.Tensor) -> torch.Tensor:
    z = z.double() - z.double().mean(1, keepdim=True)
    return (z**2).mean() ** 0.5


def ensemble_of(a: torch.Tensor, b: torch.Tensor, s_a: torch.Tensor, s_b: torch.Tensor, t: float) -> torch.Tensor:
    """Probabilities at temperature t, in plain terms."""
    mean = (s_a + s_b) / 2
    return ((a.double() * mean / s_a / t).softmax(1) + (b.double() * mean / s_b / t).softmax(1)) / 2


# --- hard labels ---------------------------------------------------------------------------------------


def toy_net() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_hard_labels_are_those_of_a_plain_loop_to_the_bit(mix: str) -> None:
    """Two epochs of SGD, one-cycle, as a script would write them."""
    from ensemble.training.augment import crop_and_flip, cutmix, mixup

    data = LabelledImages(noise(22, 8), torch.arange(22) % 10, CIFAR10_CLASSES)
    card = replace(CARD, input_size=8)
    schedule = Schedule(epochs=2, batch_size=5, lr=0.1, precision="fp32", label_smoothing=0.1)
    augmentation = Augmentation(crop_padding=1, **({} if mix == "none" else {mix: 0.5}))
    net = train(
        *(toy_net(), card, data, data),
        schedule=schedule,
        augmentation=augmentation,
        seed=3,
        device=CPU,
        compile_net=False,
    )
    twin = toy_net().to(memory_format=torch.channels_last)
    free = [*twin.parameters()]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in free if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    inputs = network_input(data.images.float() / 255, card).contiguous(memory_format=torch.channels_last)
    for epoch in range(2):
        twin.train()
        rng = generator(3, "epoch", epoch)
        torch.manual_seed(generator(3, "network", epoch).initial_seed())
        order = torch.randperm(22, generator=rng)
        for i in range(4):
            index = order[5 * i : 5 * i + 5]
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(4 * epoch + i, 8)
            x, first = crop_and_flip(inputs[index], 1, True, rng), data.labels[index]
            second, share = first, 1.0
            if mix != "none":
                torch.rand(1, generator=rng)
                x, (first, second, share) = {"mixup": mixup, "cutmix": cutmix}[mix](x, first, 0.5, rng)
            logits = twin(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, first, label_smoothing=0.1)
            if mix != "none":
                loss = share * loss + (1 - share) * F.cross_entropy(logits, second, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    recalibrate_bn(twin, inputs)
    for (name, a), b in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_hard_labels_of_a_batch() -> None:
    pool = pool_of({})
    loss, told = Hard().begin(pool, CARD, FP32, CPU)(STUDENT, VIEWS, MIXED)
    logs = STUDENT.log_softmax(1)
    expected = -sum(0.3 * logs[i, a] + 0.7 * logs[i, b] for i, (a, b) in enumerate(PAIRS))
    assert float(loss) == pytest.approx(float(expected) / 4, rel=1e-6)
    assert told.tolist() == [1, 2, 2, 6]  # of the larger share
    assert Hard().names(pool) == ()


# --- stored labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("scale", [True, False])
def test_stored_labels_equal_plain_torch(mixed: Any, scale: bool) -> None:
    a, b = said(0), 5 * said(1)
    lesson = Stored(temperature=2.0, scale=scale, hard_weight=0.25)
    loss, told = lesson.begin(pool_of({"a": a, "b": b}), CARD, FP32, CPU)(STUDENT, VIEWS, mixed)
    table = ensemble_of(a, b, reach(a), reach(b), 2.0)
    first, second, share = mixed
    p = share * table[first] + (1 - share) * table[second]
    logs = STUDENT.double().log_softmax(1)
    kl = (p * (p.log() - (STUDENT.double() / 2).log_softmax(1))).sum(1).mean() * (4 if scale else 1)
    labels = torch.arange(8) % 10
    rows = torch.arange(4)
    hard = -(share * logs[rows, labels[first]] + (1 - share) * logs[rows, labels[second]]).sum()
    assert float(loss) == pytest.approx(float(kl + 0.25 * hard / 4), rel=1e-5)
    assert torch.equal(told, p.argmax(1))


def test_stored_logits_of_one_teacher_by_mean_square() -> None:
    a, b = said(0), said(1)
    lesson = Stored(teachers=("b",), divergence="mse")
    loss, _ = lesson.begin(pool_of({"a": a, "b": b}), CARD, FP32, CPU)(STUDENT, VIEWS, MIXED)
    z = b.float() - b.float().mean(1, keepdim=True)
    z = 0.3 * z[MIXED[0]] + 0.7 * z[MIXED[1]]
    expected = ((STUDENT - STUDENT.mean(1, keepdim=True) - z) ** 2).mean()
    torch.testing.assert_close(loss, expected)


def test_stored_labels_keep_to_the_image_under_crops_and_flips() -> None:
    teach = Stored().begin(pool_of({"a": said(0)}), CARD, FP32, CPU)
    assert torch.equal(teach(STUDENT, VIEWS, PLAIN)[0], teach(STUDENT, VIEWS.flip(3) * 0, PLAIN)[0])


@pytest.mark.parametrize(
    ("lesson", "stored", "message"),
    [
        (Stored(), {}, "no teacher's logits are in all datasets; ask for --labels live"),
        (Stored(teachers=("c",)), {"a": said(0)}, "no logits of c are stored; name some of a, or ask for"),
        (Stored(), {"a": said(0), "b": torch.ones(8, 10).half()}, "b tells no classes apart"),
        (Live(teachers=("resnt20_cifar",)), {}, "unknown network 'resnt20_cifar'"),
        (Live(teachers=("resnet20_cifar:num_classes=3@random",)), {}, "has 3 classes without names, the dataset 10"),
    ],
)
def test_what_a_lesson_lacks(lesson: Soft, stored: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        lesson.begin(pool_of(stored), CARD, FP32, CPU)
    assert "\n" not in str(error.value)


# --- live labels ---------------------------------------------------------------------------------------


def plainly_read(name: str, rgb: torch.Tensor) -> torch.Tensor:
    net, card = create_model(name)
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        return net((rgb - mean) / std)


def test_live_labels_equal_plain_torch() -> None:
    """One teacher's reach is stored, the other's is measured on the images."""
    pool = pool_of({A: said(0)})
    lesson = Live(teachers=(A, B), temperature=3.0)
    loss, told = lesson.begin(pool, CARD, FP32, CPU)(STUDENT, VIEWS, MIXED)
    rgb = VIEWS * torch.tensor(CARD.std)[:, None, None] + torch.tensor(CARD.mean)[:, None, None]
    s_b = reach(plainly_read(B, pool.data.images.float() / 255))
    p = ensemble_of(plainly_read(A, rgb), plainly_read(B, rgb), reach(said(0)), s_b, 3.0)
    expected = (p * (p.log() - (STUDENT.double() / 3).log_softmax(1))).sum(1).mean() * 9
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert torch.equal(told, p.argmax(1))


def test_a_single_live_teacher_has_its_own_reach() -> None:
    lesson = Live(divergence="mse")
    loss, _ = lesson.begin(pool_of({A: 100 * said(0)}), CARD, FP32, CPU)(STUDENT, VIEWS, PLAIN)
    rgb = VIEWS * torch.tensor(CARD.std)[:, None, None] + torch.tensor(CARD.mean)[:, None, None]
    z = plainly_read(A, rgb)
    expected = (z - z.mean(1, keepdim=True) - STUDENT + STUDENT.mean(1, keepdim=True)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_live_teacher_sees_views_at_its_own_size() -> None:
    small = F.avg_pool2d(VIEWS, 2)
    lesson = Live(divergence="mse")
    loss, _ = lesson.begin(pool_of({A: said(0)}), CARD, FP32, CPU)(STUDENT, small, PLAIN)
    rgb = small * torch.tensor(CARD.std)[:, None, None] + torch.tensor(CARD.mean)[:, None, None]
    z = plainly_read(A, F.interpolate(rgb, (32, 32), mode="bilinear", antialias=True))
    expected = (z - z.mean(1, keepdim=True) - STUDENT + STUDENT.mean(1, keepdim=True)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_live_teachers_classes_are_found_by_name() -> None:
    """The student has them the other way round; a teacher without names has the dataset's order."""
    backwards = CIFAR10_CLASSES[::-1]
    card = replace(CARD, class_names=backwards)
    pool = pool_of({A: said(0)})
    plain = Live().begin(pool, CARD, FP32, CPU)(STUDENT, VIEWS, PLAIN)
    turned = Live().begin(pool.ordered(backwards), card, FP32, CPU)(STUDENT.flip(1), VIEWS, PLAIN)
    torch.testing.assert_close(plain[0], turned[0])
    assert torch.equal(plain[1], 9 - turned[1])
    nameless = "resnet20_cifar:num_classes=11@random"
    names = [*CIFAR10_CLASSES, "zebra"]
    eleven = replace(pool, data=replace(pool.data, class_names=tuple(names)))
    with pytest.raises(ValueError, match="does not know the dataset's classes, of which it lacks zebra; name another"):
        Live(teachers=(A,)).begin(eleven, CARD, FP32, CPU)
    order = {nameless: Source(nameless, None, tuple(names[::-1]))}
    teach = Live(divergence="mse").begin(replace(eleven, teachers=order), CARD, FP32, CPU)
    student = torch.randn(4, 11)
    rgb = VIEWS * torch.tensor(CARD.std)[:, None, None] + torch.tensor(CARD.mean)[:, None, None]
    z = plainly_read(nameless, rgb).flip(1)
    expected = (z - z.mean(1, keepdim=True) - student + student.mean(1, keepdim=True)).square().mean()
    torch.testing.assert_close(teach(student, VIEWS, PLAIN)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_live_teachers_classes_are_those_that_the_dataset_says() -> None:
    """Its recipe mapped them, so neither its card's names nor the dataset's order count."""
    own = {label: (3 * i + 1) % 10 for i, label in enumerate(CIFAR10_CLASSES)}
    pool = replace(pool_of({}), teachers={"mapped": Source(A, None, CIFAR10_CLASSES, own)})
    loss, told = Live(divergence="mse").begin(pool, CARD, FP32, CPU)(STUDENT, VIEWS, PLAIN)
    rgb = VIEWS * torch.tensor(CARD.std)[:, None, None] + torch.tensor(CARD.mean)[:, None, None]
    z = plainly_read(A, rgb)[:, [own[label] for label in CIFAR10_CLASSES]]
    expected = (z - z.mean(1, keepdim=True) - STUDENT + STUDENT.mean(1, keepdim=True)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(told, z.argmax(1))


def test_a_datasets_own_teacher_tells_its_classes_by_their_numbers() -> None:
    """Where the first teacher has no names, the dataset invents some, which a later one that has some does not know."""
    invented = tuple(f"{i:04d}" for i in range(10))
    pool = pool_of({})
    pool = replace(pool, data=replace(pool.data, class_names=invented), teachers={"second": Source(A, None, invented)})
    card = replace(CARD, class_names=invented)
    plain = Live().begin(replace(pool_of({}), teachers={"second": Source(A, None, CIFAR10_CLASSES)}), CARD, FP32, CPU)
    told = Live().begin(pool, card, FP32, CPU)(STUDENT, VIEWS, PLAIN)
    torch.testing.assert_close(told, plain(STUDENT, VIEWS, PLAIN))


def test_other_weights_than_the_datasets_are_no_teacher() -> None:
    right = model_card(A).weights["cifar10"].sha256
    for digest in (None, right):
        pool = replace(pool_of({}), teachers={"first": Source(A, digest, CIFAR10_CLASSES)})
        assert Live().names(pool) == ("first",)
        Live().begin(pool, CARD, FP32, CPU)
    pool = replace(pool, teachers={"first": Source(A, "0" * 64, CIFAR10_CLASSES)})
    with pytest.raises(ValueError, match="the weights of resnet20_cifar are others than those that made the dataset"):
        Live().begin(pool, CARD, FP32, CPU)


def test_a_teacher_that_sees_images_otherwise_than_it_did_is_none() -> None:
    source = Source(A, None, CIFAR10_CLASSES, input=model_card(A).input_convention)
    Live().begin(replace(pool_of({}), teachers={"first": source}), CARD, FP32, CPU)
    other = replace(source, model=f"{A}:mean=0.1")
    assert not source.is_same(replace(source, input=model_card(other.model).input_convention))
    with pytest.raises(ValueError, match=r"saw images otherwise when it made the dataset .* mean 0\.1/0\.1/0\.1"):
        Live().begin(replace(pool_of({}), teachers={"first": other}), CARD, FP32, CPU)


def test_a_student_of_luminance_is_taught_live_by_teachers_that_see_no_more() -> None:
    """As what is left of a pruned network is by the whole one."""
    grey = replace(CARD, mean=(0.5,), std=(0.2,))
    views = VIEWS[:, :1]

    @register_model(replace(grey, name="grey_teacher", mean=(0.4,), std=(0.3,)))
    def grey_teacher() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))

    try:
        pool = replace(pool_of({}), teachers={"first": Source("grey_teacher@random", None, CIFAR10_CLASSES)})
        told = Live(temperature=2.0).begin(pool, grey, FP32, CPU)(STUDENT, views, PLAIN)
        net, _ = create_model("grey_teacher@random")
    finally:
        TABLE.pop("grey_teacher", None)
    z = net((views * 0.2 + 0.5 - 0.4) / 0.3)
    expected = 4 * F.kl_div((STUDENT / 2).log_softmax(1), (z / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(told[0], expected)
    torch.testing.assert_close(told[1], z.argmax(1))
    with pytest.raises(ValueError, match=rf"student sees luminance, its teacher {A} colours; .*lesson\.kind=stored"):
        Live().begin(pool_of({A: said(0)}), grey, FP32, CPU)


def test_lessons_are_kinds() -> None:
    assert parse(Lesson, {}) == Live() and parse(Lesson, {"kind": "hard"}) == Hard()
    assert parse(Lesson, {"kind": "stored", "teachers": ["a"]}) == Stored(teachers=("a",))
    for key, value in (("temperature", 0), ("divergence", "js"), ("average", "votes"), ("hard_weight", -1), ("T", 4)):
        with pytest.raises(ConfigError, match=key):
            parse(Lesson, {key: value})
    with pytest.raises(ConfigError, match="temperature: unknown key"):
        parse(Lesson, {"kind": "hard", "temperature": 2.0})


# --- datasets ------------------------------------------------------------------------------------------

NAMES = ("ant", "bee", "cat")


def toy(folder: Path, names: tuple[str, ...] = NAMES, seed: int = 0, size: int = 8, **options: Any) -> Path:
    """Image i of class i % 3, in the order of NAMES, has i in its first pixel; its logit is largest at its class."""
    images = noise(7, size)
    images[:, 0, 0, 0] = torch.arange(7)
    targets = torch.tensor([names.index(NAMES[i % 3]) for i in range(7)])
    logits = 0.1 * said(seed, 7)[:, :3] + 5 * F.one_hot(targets, 3)
    return write_dataset(folder, images, targets, names, {"a": logits, **options.pop("logits", {})}, **options)


def test_datasets_are_joined_with_their_classes_by_name(tmp_path: Path) -> None:
    paths = [toy(tmp_path / "one"), toy(tmp_path / "two", ("cat", "ant", "bee"), 1, logits={"b": said(3, 7)[:, :3]})]
    pool = read_pool([*map(str, paths)])
    assert pool.data.class_names == NAMES and pool.size == 8 and len(pool.data) == 14
    first = pool.data.images[:, 0, 0, 0]
    assert first.tolist() == [*range(7)] * 2 and pool.data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0] * 2
    assert [*pool.stored] == ["a"] and {*pool.teachers} == {"a", "b"}
    assert torch.equal(pool.stored["a"].argmax(1), pool.data.labels)
    turned = pool.ordered(("bee", "cat", "ant"))
    assert [turned.data.class_names[i] for i in turned.data.labels] == [NAMES[i] for i in pool.data.labels]
    assert torch.equal(turned.stored["a"].argmax(1), turned.data.labels)
    assert pool.digest != read_pool([str(paths[0])]).digest == read_pool([str(paths[0])]).digest


def test_a_dataset_without_names_has_its_classes_numbers(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", noise(4, 8), torch.arange(4) % 2, (), {"a": said(0, 4)[:, :3]})
    assert read_pool([str(tmp_path / "one")]).data.class_names == ("0000", "0001", "0002")


def test_datasets_that_do_not_fit(tmp_path: Path) -> None:
    one = str(toy(tmp_path / "one"))

    def refused(other: Path | str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            read_pool([one, str(other)])
        assert "\n" not in str(error.value)

    refused(tmp_path / "three/../one", "a folder is given twice")
    refused(toy(tmp_path / "size", size=9), "has images of 9 pixels, .*one of 8; give datasets of one size")
    four = ("ant", "bee", "cow", "dog")
    other = write_dataset(tmp_path / "names", noise(4, 8), torch.arange(4), four, {"a": said(0, 4)[:, :4]})
    refused(other, r"have different classes \(cat, cow, dog\)")
    model = {"a": {"model": "b", "sha256": None}}
    refused(toy(tmp_path / "model", teachers=model), r"the teacher a of .*model \(b\) is not that of .*one \(a\)")
    mapped = {"a": {"model": "a", "sha256": None, "classes": {"ant": 2, "bee": 1, "cat": 0}}}
    refused(toy(tmp_path / "mapped", teachers=mapped), "the classes of the teacher a are mapped otherwise in .*mapped")
    same = {"a": mapped["a"] | {"classes": {name: index for index, name in enumerate(NAMES)}}}
    read_pool([one, str(toy(tmp_path / "same", teachers=same))])
    second, third = (
        toy(tmp_path / name, logits={"b": said(3, 7)[:, :3]}, teachers={"b": {"model": name, "sha256": None}})
        for name in ("second", "third")
    )
    with pytest.raises(ValueError, match=r"the teacher b of .*third \(third\) is not that of .*second \(second\)"):
        read_pool([one, str(second), str(third)])
    refused(tmp_path / "nothing", "nothing holds no ")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/images.safetensors").touch()
    refused(
        tmp_path / "run", "run is a results folder, whose images are not a dataset; make one with `invert.py dataset"
    )
