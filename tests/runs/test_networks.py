"""Whether two names mean the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ensemble.recipe import default_recipe, parse_recipe
from ensemble.runs.networks import Networks, named_networks
from ensemble.runs.plan import make_plan
from models import ModelCard, create_model

CARD = ModelCard("own", "test", 8, 2, mean=(0.5,) * 3, std=(0.5,) * 3)
CNN = "resnet20_cifar"


def test_a_teacher_is_known_by_any_name_of_its_weights(tmp_path: Path) -> None:
    net = create_model(f"{CNN}@random")[0].state_dict()
    names = {name: f"{CNN}@{tmp_path / name}.pth" for name in ("one", "copy", "other")}
    torch.save(net, tmp_path / "one.pth")
    shutil.copy(tmp_path / "one.pth", tmp_path / "copy.pth")
    torch.save({key: value + 1 for key, value in net.items()}, tmp_path / "other.pth")
    networks = Networks()
    assert networks.taught(names["copy"], [names["other"], names["one"]])
    assert not networks.taught(names["copy"], [names["other"], CNN, f"{CNN}@random"])
    assert networks.taught(f"{CNN}@cifar10", [CNN]) and not networks.taught(f"{CNN}@random", [CNN])
    assert not networks.taught("unknown_here", ["unknown_here"]) and not networks.taught(CNN, ["<own>"])


def test_a_module_in_memory_is_known_by_its_state() -> None:
    one, other = (nn.Linear(2, 2) for _ in range(2))
    networks = Networks({"<own>": (one, CARD), "<own-2>": (one, CARD), "<own-3>": (other, CARD)})
    assert networks.taught("<own-2>", ["<own>"]) and not networks.taught("<own-3>", ["<own>"])


def test_a_verifier_with_a_teachers_weights_is_told() -> None:
    recipe = parse_recipe(default_recipe([CNN], 32) | {"verifiers": [f"{CNN}@cifar10", f"{CNN}@random"]})
    notes = make_plan(recipe, [torch.device("cpu")]).notes
    assert [note for note in notes if "proves nothing" in note] == [
        f"warning: verifiers: {CNN}@cifar10 is a teacher, so it proves nothing"
    ]


class Odd(nn.Module):
    """One channel in, logits in a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.conv(x).mean((2, 3))
        return self.fc(features), features


@pytest.mark.filterwarnings("ignore:.*comes without mean and std")
def test_bare_modules_are_taken_by_the_rules_of_cards() -> None:
    own = {"input_size": 8, "mean": None, "std": None, "class_names": ()}
    (name,), known = named_networks([Odd()], {}, **own)
    card = known[name][1]
    assert (card.num_classes, len(card.mean), len(card.std)) == (5, 1, 1) and set(card.assumed) == {"mean", "std"}
    (name,), known = named_networks([Odd()], {}, **{**own, "mean": [0.4] * 3, "std": [0.2] * 3})
    assert known[name][1].mean == (0.4,) and known[name][1].std == (0.2,)
    with pytest.raises(ValueError, match="takes 1 channel, and mean has 3 numbers"):
        named_networks([Odd()], {}, **{**own, "mean": [0.2, 0.5, 0.8], "std": [0.2] * 3})
    sigmoid = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    (name,), known = named_networks([sigmoid], {}, **own)
    assert known[name][1].num_classes == 2
    with pytest.raises(ValueError, match="no logits"):
        named_networks([nn.Linear(7, 2)], {}, **own)
