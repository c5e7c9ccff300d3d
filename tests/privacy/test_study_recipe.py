"""What a leakage recipe must be, to answer what it asks; and that a quick study of few networks goes on."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ensemble.config.mistakes import ConfigError
from ensemble.config.yaml_files import load_yaml
from ensemble.privacy.study.bank import Bank
from ensemble.privacy.study.cells import Cells
from ensemble.privacy.study.folder import LeakageFolder
from ensemble.privacy.study.inference import fixed_sequence, permutation_p
from ensemble.privacy.study.recipe import LeakageRecipe, parse_leakage_recipe

SHIPPED = Path(__file__).parents[2] / "recipes/leakage/cutmix.yaml"


def asked(*teachers: int, **changes: Any) -> dict[str, Any]:
    """Twelve networks in the plain and the mixed arm, or so many."""
    plain, mixed = teachers or (12, 12)
    arms = [
        {"name": "plain", "teachers": plain},
        {"name": "cutmix", "teachers": mixed, "augmentation": {"cutmix": 1.0}},
        {"name": "never", "teachers": 4, "augmentation": {"cutmix": 1.0, "mix_probability": 0.0}},
        {"name": "mixup", "teachers": 4, "augmentation": {"mixup": 1.0}},
        {"name": "cutout", "teachers": 4, "augmentation": {"cutout": 8}},
    ]
    return {"model": "resnet8_cifar@random", "data": {"path": "nowhere"}, "arms": arms, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plain": "mixup"}, ["plain: mixup has CutMix or mixup"]),
        ({"plain": "never"}, []),
        ({"plain": "cutout"}, []),
        ({"mixed": "mixup"}, ["mixed: mixup has no CutMix"]),
        ({"mixed": "never"}, ["mixed: never has no CutMix"]),
        ({"sequence": ["cutmix", "cutout"]}, ["sequence: cutout has no CutMix"]),
        ({"sequence": ["never", "cutmix"]}, ["sequence: never has no CutMix"]),
        ({"sequence": ["cutmix", "cutmix"]}, ["sequence: names an arm twice"]),
        ({"plain": "mixup", "mixed": "cutout"}, ["plain: mixup has", "mixed: cutout has no CutMix"]),
        ({"plain": "cutmix"}, ["plain: cutmix cannot be compared with itself"]),
        ({"ensembles": {"size": 4, "each": 3}}, []),
        (
            {"ensembles": {"size": 4, "each": 4}},
            ["ensembles.each: 4 of 4 networks take 16, and an arm has 12; ask for 3"],
        ),
        ({"ensembles": {"size": 13}}, ["ensembles.size: 13 networks, and an arm has 12"]),
    ],
)
def test_a_recipe_can_answer_its_question(changes: dict[str, Any], said: list[str]) -> None:
    if not said:
        parse_leakage_recipe(asked(**changes))
        return
    with pytest.raises(ConfigError) as told:
        parse_leakage_recipe(asked(**changes))
    assert len(told.value.problems) == len(said)
    assert all(line.startswith(part) for line, part in zip(told.value.problems, said, strict=True)), told.value.problems


@pytest.mark.parametrize(("plain", "mixed"), [*product(range(2, 6), range(1, 6))])
def test_the_primary_contrast_can_fall(plain: int, mixed: int) -> None:
    """As the test itself has it, of networks that are all in order."""
    best = permutation_p(range(plain, plain + mixed), range(plain))
    data = asked(plain, mixed, ensembles={"each": 0})
    if fixed_sequence({"cutmix": best})["cutmix"]:
        parse_leakage_recipe(data)
    else:
        with pytest.raises(ConfigError, match=f"p is {best:.2g} at least and never 0.05") as told:
            parse_leakage_recipe(data)
        assert len(told.value.problems) == 1


@pytest.mark.parametrize("name", ["shipped", "least", "uneven"])
def test_a_quick_study_goes_on(name: str, tmp_path: Path) -> None:
    """What it makes of a good recipe is one that may be written down, found again and replaced."""
    data = {"shipped": load_yaml(SHIPPED), "least": asked(4, 4), "uneven": asked(12, 2, ensembles={"size": 2})}[name]
    if name == "shipped":
        data["data"]["path"] = "nowhere"
    quick = parse_leakage_recipe(data).hastened()
    assert max(arm.teachers for arm in quick.arms) == 2 and quick.ensembles.each == 1
    folder = LeakageFolder(tmp_path)
    folder.begin(quick, "digest", resume=False)
    for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        folder.check(quick, **how)


def together(recipe: LeakageRecipe) -> list[list[tuple[str, int]]]:
    cells = Cells(Bank(recipe), LeakageFolder(Path("nowhere")))
    asked, ensembles = recipe.ensembles, product(range(recipe.ensembles.size + 1), range(recipe.ensembles.each))
    found = [[(each.arm, each.seed) for each in cells.together(*of)] for of in ensembles]
    assert len(found) == (asked.size + 1) * asked.each
    return found


@pytest.mark.parametrize("ensembles", [None, {"size": 4, "each": 3}, {"size": 3, "each": 3}, {"size": 2, "each": 5}])
def test_no_network_is_in_two_ensembles_of_as_many_mixed_ones(ensembles: dict[str, int] | None) -> None:
    recipe = parse_leakage_recipe(asked(12, 11) if ensembles is None else asked(12, 12, ensembles=ensembles))
    size, each = recipe.ensembles.size, recipe.ensembles.each
    found = together(recipe)
    seeds = [[seed for _, seed in of] for of in found]
    for mixed in range(size + 1):
        part = found[mixed * each : (mixed + 1) * each]
        assert len({network for of in part for network in of}) == size * each
        assert all(sum(arm == "cutmix" for arm, _ in of) == mixed for of in part)
        assert seeds[mixed * each : (mixed + 1) * each] == seeds[:each]  # the same, whatever the number
    assert max(map(max, seeds)) < min(arm.teachers for arm in recipe.arms[:2])
