"""Edge-popup: masks, the straight-through gradient, storage, the published format, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ensemble.teachers.teacher import Teacher
from ensemble.training.weights import save_weights
from models import NETWORK, create_model, list_models, model_card, untrained_model
from models.edge_popup import (
    METADATA,
    SubnetConv2d,
    SubnetLinear,
    SubnetRule,
    as_subnet,
    frozen,
    masks,
    subnet_layers,
    top_mask,
)

SPEC = "popup/resnet20_cifar:width=0.5,k=30"
pytestmark = pytest.mark.filterwarnings("ignore:.*does not say its mean and std")


def scored(spec: str) -> nn.Module:
    """The network with its scores, as training has it; scores drawn anew from a fixed seed."""
    net, _ = untrained_model(spec, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2)
    return net.eval()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A compact file of a subnet."""
    save_weights(scored(SPEC), tmp_path / "subnet.safetensors", model_card(SPEC))
    return tmp_path / "subnet.safetensors"


def changed(path: Path, edit_metadata=None, edit_tensors=None) -> Path:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    about = json.loads(metadata[METADATA])
    if edit_metadata:
        edit_metadata(about)
    if edit_tensors:
        edit_tensors(tensors)
    save_file(tensors, path, metadata | {METADATA: json.dumps(about)})
    return path


# ---- masks and gradients


def test_hand_worked_case():
    """Two inputs, three weights kept of four; the loss is the sum of both outputs."""
    net = as_subnet(nn.Sequential(nn.Linear(2, 2)), SubnetRule(k=75))
    layer = net[0]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        layer.scores.copy_(torch.tensor([[0.5, -0.9], [0.1, -0.2]]))
    x = torch.tensor([[10.0, 100.0]])
    out = net(x)
    assert out.tolist() == [[10.0 - 200.0, 400.0]]  # 3.0 has the smallest |score|
    out.sum().backward()
    # d out / d mask = weight * x everywhere, also where the mask is 0; then the sign of the score
    assert layer.scores.grad.tolist() == [[10.0, 200.0], [30.0, -400.0]]
    assert layer.weight.grad is None


@pytest.mark.parametrize("k", [1, 12.5, 30, 50, 99.9, 100])
def test_exactly_k_per_cent_of_each_layer(k: float):
    net = as_subnet(nn.Sequential(nn.Conv2d(3, 10, 3), nn.Flatten(), nn.Linear(1000, 7)), SubnetRule(k=k))
    for name, mask in masks(net).items():
        weights = mask.numel()
        assert int(mask.sum()) == -int(-weights * k // 100), name  # ceil
        layer = subnet_layers(net)[name]
        kept, lost = layer.scores.abs()[mask == 1], layer.scores.abs()[mask == 0]
        assert not len(lost) or kept.min() >= lost.max()


def test_equal_scores_keep_the_number():
    assert int(top_mask(torch.ones(3, 5), 4).sum()) == 4


def test_global_scope_ranks_all_layers_together():
    net = as_subnet(nn.Sequential(nn.Linear(50, 20), nn.Linear(20, 4)), SubnetRule(k=25, scope="global"))
    with torch.no_grad():
        net[1].scores.mul_(100)
    found = masks(net)
    assert sum(int(m.sum()) for m in found.values()) == 270  # 25 % of 1,080
    magnitudes = torch.cat([net[0].scores.abs().flatten(), net[1].scores.abs().flatten()])
    expected = (magnitudes >= magnitudes.sort().values[-270]).float()
    assert torch.equal(torch.cat([m.flatten() for m in found.values()]), expected)
    net(torch.randn(3, 50)).sum().backward()
    assert all(layer.scores.grad.abs().sum() > 0 for layer in net)


def test_all_weights_is_the_dense_random_network():
    spec = "popup/resnet20_cifar:width=0.5,k=100"
    subnet, _ = create_model(spec + "@random")
    dense, _ = create_model("resnet20_cifar:width=0.5@random")
    rng = np.random.RandomState(0)
    for module in dense.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = (2 / module.weight[0].numel()) ** 0.5
            values = std * np.sign(rng.standard_normal(module.weight.shape))
            module.weight.copy_(torch.from_numpy(values.astype(np.float32)))
            if module.bias is not None:
                module.bias.zero_()
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(subnet(x), dense(x))


@pytest.mark.parametrize("init", ["kaiming_normal", "signed_constant"])
@pytest.mark.parametrize("scaled", [False, True])
def test_standard_deviation_of_the_weights(init: str, scaled: bool):
    net = as_subnet(nn.Sequential(nn.Linear(400, 500)), SubnetRule(k=20, init=init, scaled=scaled))
    expected = (2 / 400 / (0.2 if scaled else 1)) ** 0.5
    assert float(net[0].weight.std()) == pytest.approx(expected, rel=0.01)
    assert len(net[0].weight.abs().unique()) == 1 or init == "kaiming_normal"


def test_batch_norm_has_statistics_and_no_affine_part():
    net = scored(SPEC)
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert layers and all(m.weight is None and m.bias is None and m.running_mean is not None for m in layers)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {f"{n}.scores" for n in subnet_layers(net)}


def test_frozen_subnet_is_plain_and_the_same_function():
    net = scored(SPEC)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
    plain = frozen(net)
    assert not any(isinstance(m, SubnetConv2d | SubnetLinear) for m in plain.modules())
    assert torch.equal(plain(x), before)
    assert sum(p.numel() for p in plain.parameters()) == sum(
        p.numel() for m in scored(SPEC).modules() if isinstance(m, SubnetConv2d | SubnetLinear) for p in [m.weight]
    )


def test_a_subnet_teacher_sees_its_own_statistics():
    net = scored(SPEC)
    running = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.clone()
    teacher = Teacher("subnet", frozen(net), model_card(SPEC))
    assert teacher.statistics is not None and torch.allclose(teacher.statistics.mean[: len(running)].float(), running)
    logits, moments, *_ = teacher.observe(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10) and moments.shape == (2, teacher.channels)


# ---- storage


def test_compact_file_is_small_and_loads_bit_for_bit(stored: Path):
    net, card = create_model(f"{SPEC}@{stored}")
    expected = frozen(scored(SPEC)).state_dict()
    for key, value in net.state_dict().items():
        assert torch.equal(value, expected[key]) or key.endswith("num_batches_tracked"), key
    weights = sum(p.numel() for p in net.parameters())
    assert stored.stat().st_size < weights / 8 + 25000 and card.family == "edge_popup"


def test_another_process_rebuilds_the_same_bits(stored: Path):
    """With other generator states and threads, as on another machine."""
    code = (
        "import sys, torch, hashlib; torch.manual_seed(9); torch.set_num_threads(2)\n"
        "from models import create_model\n"
        f"net, _ = create_model({f'{SPEC}@{stored}'!r})\n"
        "print(hashlib.sha256(b''.join(p.numpy().tobytes() for p in net.parameters())).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    net = frozen(scored(SPEC))
    assert out.split()[-1] == hashlib.sha256(b"".join(p.numpy().tobytes() for p in net.parameters())).hexdigest()


def flip(tensors: dict[str, torch.Tensor]) -> None:
    """Swap a kept weight and a lost one: the number stays right."""
    bits = np.unpackbits(tensors["conv1.mask"].numpy())
    one, zero = np.flatnonzero(bits)[0], np.flatnonzero(bits == 0)[0]
    bits[[one, zero]] = bits[[zero, one]]
    tensors["conv1.mask"] = torch.from_numpy(np.packbits(bits))


DAMAGE = {
    "digest": (lambda about: about.update(digest="0" * 64), None, "digest"),
    "swapped bits": (None, flip, "digest"),
    "lost bits": (None, lambda t: t["conv1.mask"].fill_(0), "keeps 0 of"),
    "short mask": (None, lambda t: t.update({"conv1.mask": t["conv1.mask"][:-1].clone()}), "missing or damaged"),
    "no mask": (None, lambda t: t.pop("conv1.mask"), "missing or damaged"),
    "foreign mask": (None, lambda t: t.update({"conv9.mask": t["conv1.mask"].clone()}), "conv9.mask"),
    "no statistics": (None, lambda t: t.pop("bn1.running_mean"), "bn1.running_mean"),
    "k": (lambda about: about.update(k=50.0), None, "k=50.0"),
    "k out of range": (lambda about: about.update(k=0), None, "(0, 100]"),
    "seed": (lambda about: about.update(seed=4), None, "seed=4"),
    "rule incomplete": (lambda about: about.pop("digest"), None, "metadata is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_refused(stored: Path, damage: str):
    metadata, tensors, words = DAMAGE[damage]
    changed(stored, metadata, tensors)
    with pytest.raises(ValueError, match=r"subnet\.safetensors|edge-popup") as caught:
        create_model(f"{SPEC}@{stored}")
    assert words in str(caught.value)


def published(net: nn.Module, path: Path) -> None:
    """A file of the published kind: DataParallel's prefix, the classifier as a 1 x 1 convolution, no k."""
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    for key in ("module.fc.weight", "module.fc.scores"):
        state[key] = state[key][:, :, None, None]
    torch.save({"epoch": 99, "arch": "ResNet50", "state_dict": state, "best_acc1": 60.0}, path)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    net = scored("popup/resnet50:k=30,num_classes=5")
    path = tmp_path_factory.mktemp("published") / "resnet50_usc_unsigned.pth"
    published(net, path)
    return net, path


def test_published_file(resnet):
    net, path = resnet
    loaded, _ = create_model(f"popup/resnet50:k=30,num_classes=5@{path}")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        # the published network in plain PyTorch: sort the magnitudes, keep the upper part
        weight, scores = net.fc.weight, net.fc.scores.abs()
        mask = torch.ones_like(scores).flatten()
        mask[scores.flatten().sort().indices[: int((1 - 0.3) * scores.numel())]] = 0
        assert torch.equal(loaded.fc.weight, weight * mask.view_as(scores))
        assert torch.allclose(loaded(x), expected)


def test_published_file_with_a_key_that_does_not_match(resnet, tmp_path: Path):
    content = torch.load(resnet[1], weights_only=True)
    content["state_dict"]["module.layer1.0.conv9.weight"] = content["state_dict"].pop("module.layer1.0.conv1.weight")
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"1 missing .layer1\.0\.conv1\.weight.; 1 unexpected .layer1\.0\.conv9\.weight."
    ):
        create_model(f"popup/resnet50:k=30,num_classes=5@{tmp_path}/other.pth")


def test_published_file_needs_k(resnet):
    with pytest.raises(ValueError, match="give the percentage"):
        create_model(f"popup/resnet50:num_classes=5@{resnet[1]}")


@pytest.mark.parametrize("k", ["0", "-1", "100.1", "1000"])
def test_k_out_of_range(k: str):
    with pytest.raises(ValueError, match=r"percentage in \(0, 100\]"):
        create_model(f"popup/resnet20_cifar:k={k}@random")


def test_layer_with_less_than_one_survivor():
    with pytest.raises(ValueError, match="of 432 weights is less than one: layer conv1"):
        create_model("popup/resnet20_cifar:k=0.2@random")


@pytest.mark.parametrize("model", ["popup/swin_t:k=30@random", "popup/vit_b_16:k=30@random"])
def test_network_with_parts_that_would_stay_dense(model: str):
    with pytest.raises(ValueError, match="would stay dense"):
        create_model(model)


def test_subnet_of_a_subnet():
    with pytest.raises(ValueError, match="a subnet already"):
        create_model("popup/resnet20_popup_cifar:k=30@random")


def test_global_subnet_with_equal_scores_is_stored_and_loaded(tmp_path: Path):
    spec = "popup/resnet20_cifar:width=0.5,k=30,scope=global"
    net = scored(spec)
    with torch.no_grad():
        for layer in subnet_layers(net).values():
            layer.scores.fill_(1.0)
    save_weights(net, tmp_path / "subnet.safetensors", model_card(spec))
    loaded, _ = create_model(f"{spec}@{tmp_path}/subnet.safetensors")
    kept = sum(int((p != 0).sum()) for p in loaded.parameters())
    assert kept == -(-sum(p.numel() for p in loaded.parameters()) * 3 // 10)


def test_files_of_one_subnet_are_equal_to_the_bit(tmp_path: Path):
    """Entries of metadata, of which safetensors itself writes now this one first, now that one."""
    net, file, digests = scored(SPEC), tmp_path / "subnet.safetensors", set()
    for _ in range(12):
        save_weights(net, file, model_card(SPEC))
        digests.add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(digests) == 1
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == [METADATA, "card", NETWORK]


def test_network_without_layers():
    with pytest.raises(ValueError, match="no convolution"):
        as_subnet(nn.Sequential(nn.ReLU()), SubnetRule(k=50))


def test_listed_with_bundled_weights():
    (card,) = [c for c in list_models("*popup*") if not c.name.startswith("popup/")]
    assert card.weights[card.default_weights].source == "bundled"
    assert card.weights[card.default_weights].accuracy >= 0.8


def test_scores_learn():
    """Some steps on one batch lower its loss, and the weights stay what they were."""
    net = scored(SPEC).train()
    before = {name: layer.weight.clone() for name, layer in subnet_layers(net).items()}
    x, y = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(layer.weight, before[name]) for name, layer in subnet_layers(net).items())
