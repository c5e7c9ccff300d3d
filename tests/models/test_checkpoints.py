"""Checkpoints as people save them: wrappers, prefixes, averages, masks, other things beside the weights."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import create_model, parse_spec
from models._said import _warned

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say its mean and std")
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    net, _ = create_model("resnet20_cifar@random")
    return {key: value + 0.5 if value.is_floating_point() else value for key, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def other(state) -> State:
    return {key: value * 2 for key, value in state.items()}


@pytest.fixture(autouse=True)
def warned():
    _warned.clear()


def _below(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def _load(content: Any, file: Path, part: str = "") -> tuple[State, list[str]]:
    """The state that is loaded from `content`, saved as `file`, and what was warned of."""
    torch.save(content, file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net, _ = create_model(f"resnet20_cifar@{file}{part}")
    return net.state_dict(), [str(w.message) for w in said if "does not say its" not in str(w.message)]


def _same(one: State, two: State) -> bool:
    return all(torch.equal(value, two[key]) for key, value in one.items() if not key.endswith("batches_tracked"))


PREFIXES = [
    "_orig_mod.module.",
    "module._orig_mod.",
    "module.module.",
    "model.",
    "net.",
    "module.model.",
    "classifier.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict", "model", "net", "ema", "what.ever"])
def test_any_prefix_below_any_wrapper(state, tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    tensors = _below(prefix, state)
    content = {wrapper: tensors, "optimizer": OPTIMIZER, "loss": torch.tensor(0.4), "epoch": 3} if wrapper else tensors
    loaded, said = _load(content, tmp_path / "net.pth")
    assert _same(loaded, state) and not said


def test_prefixes_in_safetensors(state, tmp_path: Path) -> None:
    save_file(_below("module.model.", state), tmp_path / "net.safetensors")
    net, _ = create_model(f"resnet20_cifar@{tmp_path}/net.safetensors")
    assert _same(net.state_dict(), state)


def test_wrappers_inside(state, tmp_path: Path) -> None:
    """DataParallel around a part, torch.compile around blocks."""
    inside = {key.replace("layer1.", "layer1.module.").replace("bn2.", "bn2._orig_mod."): v for key, v in state.items()}
    loaded, said = _load({"state_dict": _below("model.", inside)}, tmp_path / "net.pth")
    assert _same(loaded, state) and not said


def test_what_lies_beside_the_weights_is_left_out(state, tmp_path: Path) -> None:
    counted = dict(state)
    for module in ("", "conv1.", "layer1.", "layer1.0.bn1."):
        counted |= {module + name: torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "total_params")}
    beside = {"criterion.weight": torch.ones(10), "metric.total": torch.ones(1), "n_averaged": torch.tensor(3)}
    loaded, said = _load(_below("module.", counted) | beside, tmp_path / "net.pth")
    assert _same(loaded, state) and not said


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "ema"), ("net", "swa_model"), ("a", "avg")],
)
def test_averaged_weights_go_first_and_both_can_be_asked_for(state, other, tmp_path: Path, raw, averaged) -> None:
    content = {raw: other, averaged: _below("module.", state), "optimizer": OPTIMIZER}
    loaded, (said,) = _load(content, tmp_path / "net.pth")
    assert _same(loaded, state)
    assert (
        f"the averaged ones are taken ({averaged}.module)" in said and f"@FILE#model takes the raw ones ({raw})" in said
    )
    for part, expected in (("ema", state), ("model", other), ("raw", other), (raw, other), (averaged, state)):
        loaded, said = _load(content, tmp_path / "net.pth", f"#{part}")
        assert _same(loaded, expected) and not said, part


def test_averages_in_one_dictionary(state, other, tmp_path: Path) -> None:
    content = {"state_dict": _below("model.", other) | _below("ema_model.", state)}
    assert _same(_load(content, tmp_path / "net.ckpt")[0], state)
    beside = other | _below("ema.", state)
    assert _same(_load(beside, tmp_path / "net.ckpt")[0], state)
    assert _same(_load(beside, tmp_path / "net.ckpt", "#raw")[0], other)


def test_equal_copies_are_one(state, tmp_path: Path) -> None:
    loaded, said = _load({"model": state, "ema": state}, tmp_path / "net.pth")
    assert _same(loaded, state) and not said


def test_sets_that_nothing_tells_apart(state, other, tmp_path: Path) -> None:
    content = {"student": state, "tutor": other}
    message = "several sets of weights for resnet20_cifar: student, tutor; choose one, as resnet20_cifar@FILE#student"
    with pytest.raises(ValueError, match=message):
        _load(content, tmp_path / "net.pth")
    assert _same(_load(content, tmp_path / "net.pth", "#tutor")[0], other)
    with pytest.raises(ValueError, match="no weights 'tudor' for resnet20_cifar; it holds: student, tutor"):
        _load(content, tmp_path / "net.pth", "#tudor")


def test_a_network_beside_its_attacker_and_normalizers(state, other, tmp_path: Path) -> None:
    tensors = _below("module.model.", state) | _below("module.attacker.model.", other)
    for module in ("module.normalizer.", "module.attacker.normalize."):
        tensors |= {module + "new_mean": torch.full((3, 1, 1), 0.5), module + "new_std": torch.full((3, 1, 1), 0.25)}
    loaded, said = _load({"model": tensors, "epoch": 190}, tmp_path / "robust.pt")
    assert _same(loaded, state)
    assert "taken is model.module.model, left out model.module.attacker.model" in said[0]
    assert "is not applied; to do as it does ask for resnet20_cifar:mean=0.5/0.5/0.5,std=0.25/0.25/0.25@FILE" in said[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same mean and std are on the card: nothing to say
        create_model(f"resnet20_cifar:mean=0.5,std=0.25@{tmp_path}/robust.pt#module.model")
    attacker = _load({"model": tensors}, tmp_path / "robust.pt", "#model.module.attacker.model")[0]
    assert _same(attacker, other)


def test_normalizer_in_front_of_the_network(state, tmp_path: Path) -> None:
    tensors = {"normalize.mu": torch.zeros(1, 3, 1, 1), "normalize.sigma": torch.ones(1, 3, 1, 1)} | state
    loaded, (said,) = _load(tensors, tmp_path / "net.pth")
    assert _same(loaded, state) and "mean=0/0/0,std=1/1/1" in said


def test_masks_of_pruning_are_applied(state, tmp_path: Path) -> None:
    pruned, expected = {}, {}
    for key, value in state.items():
        mask = (value.abs() > value.abs().median()).float()
        if value.ndim == 4:
            pruned |= {key + "_orig": value, key + "_mask": mask}
        else:
            pruned[key] = value
        expected[key] = value * mask if value.ndim == 4 else value
    assert _same(_load({"model": _below("module.", pruned)}, tmp_path / "net.pth")[0], expected)


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("a"), steps=np.int64(3)),
        types.SimpleNamespace(a=[1]),
        np.float64(91.7),
        np.float32(1),
        np.bool_(True),
        np.zeros(3),
        Path("results"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_objects_beside_the_weights(state, tmp_path: Path, beside: Any) -> None:
    assert _same(_load({"model": state, "args": beside}, tmp_path / "net.pth")[0], state)


@pytest.mark.parametrize(
    "name", ["best.pth.tar", "ckpt.t7", "pytorch_model.bin", "last.ckpt", "weights", "a#b", "net.PTH"]
)
def test_a_file_is_a_file_whatever_its_ending(
    state, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    torch.save({"model": state, "ema": _below("", {k: v * 2 for k, v in state.items()})}, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert parse_spec(f"a@{name}").path == Path(name) and parse_spec(f"a@{name}").part is None
    assert parse_spec(f"a@{name}#ema").path == Path(name) and parse_spec(f"a@{name}#ema").part == "ema"
    net, _ = create_model(f"resnet20_cifar@{name}#model")
    assert _same(net.state_dict(), state)


def test_files_named_like_weights_tags(state, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("random", "default", "cifar10"):
        torch.save(state, tmp_path / name)
        _, card = create_model("resnet20_cifar" + (f"@{name}" if name != "default" else ""))
        assert card.weights[card.default_weights].source in ("random", "bundled")


@pytest.mark.parametrize("text", ["none.pth#ema", "dir/none#ema"])
def test_missing_file_with_a_part(text: str) -> None:
    with pytest.raises(ValueError, match=rf"weights file {text.removesuffix('#ema')} does not exist"):
        create_model(f"resnet20_cifar@{text}")


def test_legacy_format(state, tmp_path: Path) -> None:
    torch.save({"net": state}, tmp_path / "old.t7", _use_new_zipfile_serialization=False)
    net, _ = create_model(f"resnet20_cifar@{tmp_path}/old.t7")
    assert _same(net.state_dict(), state)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_and_whole_modules_say_what_to_do(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 2)), tmp_path / "scripted.pt")
    torch.save({"ema": net}, tmp_path / "whole.pt")
    for name, message in (
        ("scripted", r"TorchScript archive.*torch.save.torch.jit.load..*scripted.pt'..state_dict"),
        (
            "whole",
            r"needs pickled code .*Sequential.*torch.save.torch.load..*whole.pt', weights_only=False.*state_dict",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught, warnings.catch_warnings():
            warnings.simplefilter("error")
            create_model(f"resnet20_cifar@{tmp_path}/{name}.pt")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
@pytest.mark.parametrize("key", ["bn1.running_var", "layer2.0.conv1.weight", "linear.bias"])
@pytest.mark.parametrize("half", [False, True])
def test_values_that_are_not_finite(state, tmp_path: Path, value: float, kind: str, key: str, half: bool) -> None:
    tensors = {k: v.half() if half and v.is_floating_point() else v.clone() for k, v in state.items()}
    tensors[key].view(-1)[1] = value
    message = rf"net.pth: model.module.{key} holds {kind} values \(1 of {tensors[key].numel()}\)"
    with pytest.raises(ValueError, match=message):
        _load({"model": _below("module.", tensors)}, tmp_path / "net.pth")


def test_values_too_large_for_fp32(state, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"linear\.bias holds infinite values \(10 of 10"):
        _load(state | {"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)}, tmp_path / "net.pth")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "linear.weight is a quantised tensor"),
        (lambda t: t.to(torch.int8), "linear.weight is of type int8, without a scale"),
        (lambda t: t.to(torch.complex64), "linear.weight is complex"),
        (lambda t: t.to_sparse(), "linear.weight is not a dense tensor"),
        (lambda t: t.to("meta"), "linear.weight is a meta tensor"),
    ],
)
def test_tensors_that_are_not_plain(state, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _load({"model": state | {"linear.weight": change(state["linear.weight"])}}, tmp_path / "net.pth")


def test_a_dictionary_that_holds_itself(state, tmp_path: Path) -> None:
    content: dict[str, Any] = {"weights": state}
    content["self"] = content
    assert _same(_load(content, tmp_path / "net.pth")[0], state)


def test_nan_beside_the_weights_is_nobodys_business(state, tmp_path: Path) -> None:
    assert _same(_load({"model": state, "loss": torch.tensor(float("nan"))}, tmp_path / "net.pth")[0], state)


def test_half_precision_with_zero_and_denormal_variances(state, tmp_path: Path) -> None:
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    tensors["bn1.running_var"][:4] = 0
    loaded, _ = _load(tensors, tmp_path / "net.pth")
    assert loaded["conv1.weight"].dtype == torch.float32 and _same(loaded, {k: v.float() for k, v in tensors.items()})
    tiny = state | {"bn1.running_var": torch.full((16,), 5.6e-45)}
    assert _same(_load(tiny, tmp_path / "net.pth")[0], tiny)


def test_variances_below_zero_are_refused(tmp_path: Path) -> None:
    state = create_model("resnet20_cifar@random")[0].state_dict()
    state["layer1.0.bn1.running_var"][:2] = -0.1
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"layer1\.0\.bn1\.running_var holds variances below 0 \(2 of"):
        create_model(f"resnet20_cifar@{tmp_path / 'net.pth'}")


def test_floats_of_eight_bits(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    tensors = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in state.items()}
    assert _same(_load(tensors, tmp_path / "net.pth")[0], {k: v.float() for k, v in tensors.items()})


def test_variances_that_are_all_zero_are_told(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state | {"bn1.running_var": torch.zeros_like(state["bn1.running_var"])}, tmp_path / "net.pth")
    create_model(f"resnet20_cifar@{tmp_path / 'net.pth'}")  # a branch may be dead
    zeros = {key: torch.zeros_like(value) for key, value in state.items() if key.endswith("running_var")}
    torch.save(state | zeros, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="every running_var is 0"):
        create_model(f"resnet20_cifar@{tmp_path / 'net.pth'}")


def test_a_raw_pickle_is_refused_without_other_words(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"net\.pkl"):
        warnings.simplefilter("error")
        create_model(f"resnet20_cifar@{tmp_path / 'net.pkl'}")
