"""Plain data to instances and back, and the message for each mistake."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from config_examples import Adam, Double, Lbfgs, Optimizer, Plain, Run, Term, run
from pydantic import Field

from ensemble.config.checked import Checked
from ensemble.config.explaining import PLUGINS
from ensemble.config.mistakes import ConfigError
from ensemble.config.parsing import parse, to_plain
from ensemble.config.yaml_files import dump_yaml, load_text


def problems(data: object, cls: Any = Run, path: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(cls, data, path)
    return caught.value.problems


def test_defaults_and_values() -> None:
    assert parse(Run, run()) == Run(1, Adam(0.1))
    data = run(batch=4, clip=1e-4, targets=[3, "cat"], terms=[{"weight": 2}], norm={}, by_layer={"a.b": 1})
    assert parse(Run, data) == Run(
        1,
        Adam(0.1),
        batch=4,
        clip=1e-4,
        targets=(3, "cat"),
        terms=(Term(2.0),),
        norm=Plain(),
        by_layer={"a.b": 1.0},
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("clip", 3, 3.0),
        ("clip", -1e300, -1e300),
        ("clip", None, None),
        ("norm", None, None),
        ("norm", {}, Plain()),
        ("norm", {"scale": 2}, Plain(2.0)),
        ("norm", {"kind": "double", "inner": {"kind": "double"}}, Double(Double())),
        ("norm", Plain(3.0), Plain(3.0)),
        ("plain", {"kind": "plain"}, Plain()),
        ("plain", {"scale": 2}, Plain(2.0)),
        ("plain", "none", "none"),
        ("optimizer", Lbfgs(3), Lbfgs(3)),
        ("terms", [Term(2.0), {}], (Term(2.0), Term())),
        ("batch", "auto", "auto"),
        ("batch", None, None),
        ("targets", "all", "all"),
        ("targets", 7, 7),
        ("targets", [], ()),
        ("targets", (1, "a"), (1, "a")),
        ("devices", ["a", "b"], ("a", "b")),
        ("cells", None, None),
        ("cells", 3, 3),
        ("size", 3, 3),
        ("size", 3.0, 3.0),
        ("level", 2, 2),
        ("seed", 2**70, 2**70),
        ("by_layer", {"int": 3, "[key]": 1}, {"int": 3.0, "[key]": 1.0}),
    ],
)
def test_accepted(key: str, value: object, expected: object) -> None:
    got = getattr(parse(Run, run(**{key: value})), key)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        # types
        ({"seed": "abc"}, "seed: expected an integer, got 'abc'"),
        ({"seed": True}, "seed: expected an integer, got true"),
        ({"seed": 3.0}, "seed: expected an integer, got 3.0"),
        ({"seed": "3"}, "seed: expected an integer, got '3'"),
        ({"seed": None}, "seed: expected an integer, got null"),
        ({"seed": [1]}, "seed: expected an integer, got a list"),
        ({"seed": datetime.date(2026, 1, 31)}, "seed: expected an integer, got 2026-01-31"),
        ({"flip": 1}, "flip: expected true or false, got 1"),
        ({"flip": "yes"}, "flip: expected true or false, got 'yes'"),
        ({"name": False}, "name: expected a string, got false; put it in quotes"),
        ({"name": None}, "name: expected a string, got null"),
        ({"name": datetime.date(2026, 1, 31)}, "name: expected a string, got 2026-01-31; put it in quotes"),
        ({"clip": math.nan}, "clip: expected a number or null, got nan"),
        ({"clip": math.inf}, "clip: expected a number or null, got inf"),
        ({"clip": "1e-4"}, "clip: expected a number or null, got '1e-4'"),
        ({"clip": True}, "clip: expected a number or null, got true"),
        ({"clip": 10**400}, f"clip: expected a number or null, got 1{'0' * 56}..."),
        # words
        (
            {"precision": "bf61"},
            "precision: expected one of 'fp32', 'bf16', 'off', got 'bf61'; did you mean 'bf16'?",
        ),
        ({"precision": False}, "precision: expected one of 'fp32', 'bf16', 'off', got false; put it in quotes"),
        ({"batch": "aut"}, "batch: expected an integer, 'auto' or null, got 'aut'; did you mean 'auto'?"),
        ({"batch": [1]}, "batch: expected an integer, 'auto' or null, got a list"),
        ({"cells": "aut"}, "cells: expected an integer, 'auto' or null, got 'aut'; did you mean 'auto'?"),
        ({"level": True}, "level: expected one of 1, 2, got true"),
        ({"level": 1.0}, "level: expected one of 1, 2, got 1.0"),
        ({"level": 3}, "level: expected one of 1, 2, got 3"),
        # lists and mappings
        ({"targets": 2.5}, "targets: expected a string, an integer or a list, got 2.5; put it in quotes"),
        ({"targets": {"a": 1}}, "targets: expected a string, an integer or a list, got a mapping"),
        ({"targets": [1, 2.5]}, "targets[1]: expected an integer or a string, got 2.5; put it in quotes"),
        ({"terms": {"weight": 1}}, "terms: expected a list, got a mapping"),
        ({"terms": [{}, 3]}, "terms[1]: expected a mapping, got 3"),
        ({"optimizer": {"kind": "adam", "lr": 1, "betas": [1]}}, "optimizer.betas: expected a list of 2, got 1"),
        ({"optimizer": {"kind": "adam", "lr": 1, "betas": [1, 1, 1]}}, "optimizer.betas: expected a list of 2, got 3"),
        ({"by_layer": {"layer1.0": "x"}}, "by_layer['layer1.0']: expected a number, got 'x'"),
        ({"by_layer": {"int": "x"}}, "by_layer.int: expected a number, got 'x'"),
        ({"by_layer": []}, "by_layer: expected a mapping, got a list"),
        # keys
        ({"terms": [{}, {"wieght": 3}]}, "terms[1].wieght: unknown key; did you mean 'weight'?"),
        ({"terms": [{"zzz": 3}]}, "terms[0].zzz: unknown key; valid keys: weight, layers"),
        ({"lr": 3}, "lr: unknown key; did you mean 'optimizer.lr'?"),
        (
            {"optimizer": {"kind": "lbfgs"}, "lr": 3},
            "lr: unknown key; valid keys: seed, optimizer, name, flip, precision, batch, clip, targets, terms, norm, "
            "plain, by_layer, size, cells, level, share, below, steps, names, devices, sizes",
        ),
        ({"terms": [{}, {}], "weight": 1}, "weight: unknown key; did you mean 'terms[0].weight'?"),
        ({"weight": 1}, "weight: unknown key; did you mean 'terms[0].weight'?"),
        ({"terms": [{3: 3}]}, "terms[0]: the key 3 is not a string; put it in quotes"),
        ({"by_layer": {1: 1}}, "by_layer: the key 1 is not a string; put it in quotes"),
        (
            {"terms": [{datetime.date(2026, 1, 31): 3}]},
            "terms[0]: the key 2026-01-31 is not a string; put it in quotes",
        ),
        ({"by_layer": {"[key]": "x"}}, "by_layer['[key]']: expected a number, got 'x'"),
        ({"by_layer": {False: 1}}, "by_layer: the key false is not a string; put it in quotes"),
        ({"optimizer": {"kind": "adam"}}, "optimizer.lr: missing"),
        (
            {"optimizer": {"kind": "lbfgs", "lr": 1}},
            "optimizer.lr: unknown key; valid keys: kind, history, line_search",
        ),
        ({"norm": {"scael": 1}}, "norm.scael: unknown key; did you mean 'scale'?"),
        ({"plain": {"scael": 1}}, "plain.scael: unknown key; did you mean 'scale'?"),
        # kinds
        ({"optimizer": {"kind": "adma", "lr": 1}}, "optimizer.kind: unknown kind 'adma'; did you mean 'adam'?"),
        ({"optimizer": {"kind": [1]}}, "optimizer.kind: unknown kind a list; valid kinds: adam, lbfgs"),
        ({"optimizer": {"kind": {"a": {}}}}, "optimizer.kind: unknown kind a mapping; valid kinds: adam, lbfgs"),
        ({"optimizer": {"kind": None}}, "optimizer.kind: unknown kind null; valid kinds: adam, lbfgs"),
        ({"optimizer": {"lr": 1}}, "optimizer.kind: missing; valid kinds: adam, lbfgs"),
        ({"optimizer": "adam"}, "optimizer: expected a mapping, got 'adam'"),
        ({"norm": {"kind": "adam"}}, "norm.kind: unknown kind 'adam'; valid kinds: double, plain; " + PLUGINS),
        ({"norm": 5}, "norm: expected a mapping or null, got 5"),
        (
            {"norm": {"kind": "double", "outer": {"inner": {}}}},
            "norm.outer.inner: unknown key; valid keys: kind, scale",
        ),
        ({"plain": {"kind": "double"}}, "plain.kind: unknown kind 'double'; valid kinds: plain; " + PLUGINS),
        ({"plain": "nnoe"}, "plain: expected a mapping or 'none', got 'nnoe'; did you mean 'none'?"),
        ({"plain": {"scale": "x"}}, "plain.scale: expected a number, got 'x'"),
        ({"norm": Term()}, "norm: expected a mapping or null, got Term(weight=1.0, layers=())"),
        # bounds
        ({"optimizer": {"kind": "adam", "lr": -1}}, "optimizer.lr: must be positive, got -1"),
        ({"optimizer": {"kind": "adam", "lr": 0.0}}, "optimizer.lr: must be positive, got 0.0"),
        ({"optimizer": {"kind": "lbfgs", "history": 0}}, "optimizer.history: must be at least 1, got 0"),
        ({"batch": -1}, "batch: must be at least 1, got -1"),
        ({"cells": 0}, "cells: must be at least 1, got 0"),
        ({"share": 2}, "share: must be at most 1, got 2"),
        ({"share": -0.5}, "share: must be at least 0, got -0.5"),
        ({"below": 1}, "below: must be less than 1, got 1"),
        ({"below": -1.5}, "below: must be more than -1.5, got -1.5"),
        ({"steps": 0}, "steps: must be at least 2, got 0"),
        ({"steps": 100}, "steps: must be at most 99, got 100"),
        ({"steps": 3}, "steps: must be a multiple of 2, got 3"),
        ({"sizes": [1, -1]}, "sizes[1]: must be at least 0, got -1"),
        ({"name": ""}, "name: must have at least 1 character"),
        ({"name": "x" * 100}, "name: must have at most 99 characters, got 100"),
        ({"names": []}, "names: must have at least 1 entry"),
        ({"names": [1]}, "names[0]: expected a string, got 1; put it in quotes"),
        ({"names": list("abcd")}, "names: must have at most 3 entries, got 4"),
        ({"devices": ["a"]}, "devices: must have at least 2 entries, got 1"),
        ({"devices": ["a", 1]}, "devices[1]: expected a string, got 1; put it in quotes"),
        # rules
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"name": "nameless"}, "call it something else"),
        (
            {"optimizer": {"kind": "lbfgs", "history": 101, "line_search": False}},
            "optimizer.history: more than 100 needs a line search",
        ),
        ({"optimizer": {"kind": "lbfgs", "history": 13}}, "optimizer: 13 steps are bad luck"),
    ],
)
def test_refused_with_one_line(values: dict[str, Any], line: str) -> None:
    assert problems(run(**values)) == [line]


@dataclass(frozen=True)
class Ratio(Checked):
    ratio: Annotated[float | int, Field(gt=0)] = 1


def test_a_bound_on_a_union() -> None:
    assert problems({"ratio": 0}, cls=Ratio) == ["ratio: must be positive, got 0"]


def test_too_few_entries_and_one_of_them_wrong() -> None:
    assert problems(run(devices=[1])) == [
        "devices[0]: expected a string, got 1; put it in quotes",
        "devices: must have at least 2 entries, got 1",
    ]


def test_data_that_is_not_a_mapping() -> None:
    assert problems([1]) == ["expected a mapping, got a list"]
    assert problems(None, path="recipe") == ["recipe: expected a mapping, got null"]
    assert problems(3, cls=Optimizer) == ["expected a mapping, got 3"]


def test_a_family_is_read_as_its_kinds() -> None:
    assert parse(Optimizer, {"kind": "adam", "lr": 1}) == Adam(1.0)
    assert problems({"kind": "adma"}, cls=Optimizer, path="o") == ["o.kind: unknown kind 'adma'; did you mean 'adam'?"]


def test_all_problems_at_once_below_the_given_path() -> None:
    data = {
        "sede": 3,
        "optimizer": {"kind": "adam", "lr": -1, "beta": 2, "betas": [1, "b"]},
        "terms": [{"weight": "x"}, {"layers": [1, "a", 2]}],
        "flip": "no",
        "share": 2,
        "steps": 0,
    }
    assert sorted(problems(data, path="job")) == sorted(
        [
            "job.sede: unknown key; did you mean 'seed'?",
            "job.seed: missing",
            "job.optimizer.beta: unknown key; did you mean 'betas'?",
            "job.optimizer.lr: must be positive, got -1",
            "job.optimizer.betas[1]: expected a number, got 'b'",
            "job.flip: expected true or false, got 'no'",
            "job.terms[0].weight: expected a number, got 'x'",
            "job.terms[1].layers[0]: expected a string, got 1; put it in quotes",
            "job.terms[1].layers[2]: expected a string, got 2; put it in quotes",
            "job.share: must be at most 1, got 2",
            "job.steps: must be at least 2, got 0",
        ]
    )


def test_several_broken_rules_of_one_object() -> None:
    assert problems(run(seed=-1, name="nameless"), path="job") == [
        "job.seed: must be at least 0, got -1",
        "job: call it something else",
    ]


def test_rules_wait_until_the_fields_are_valid() -> None:
    assert problems(run(seed=-1, share=2)) == ["share: must be at most 1, got 2"]


def test_data_stays_as_it_is() -> None:
    data = run(targets=[1, 2], optimizer={"kind": "adam", "lr": 1, "betas": [0, 0]}, by_layer={"a": 1})
    read = parse(Run, data)
    assert data == run(targets=[1, 2], optimizer={"kind": "adam", "lr": 1, "betas": [0, 0]}, by_layer={"a": 1})
    assert isinstance(data["by_layer"], dict)
    data["by_layer"]["a"] = 2
    assert read.by_layer == {"a": 1.0}


@pytest.mark.parametrize(
    "instance",
    [
        Run(1, Adam(1e-5)),
        Run(2, Lbfgs(3, False), name="1e-4", flip=False, precision="off", batch=8, clip=1e300, targets=(1, "2")),
        Run(3, Adam(1e22, (0.5, 1e-300)), name="no", targets="12:30", norm=Double(Plain(0.1)), size=2.0),
        Run(4, Lbfgs(), name="2026-01-31 # ü\n 'x'", terms=(Term(0.1 + 0.2, ("a", "off")), Term()), batch=None),
        Run(5, Lbfgs(), targets=4, by_layer={"layer1.0": -0.0, "<<": 1.0, "": 2.0, "on": 3.0}, plain=Plain()),
    ],
)
def test_round_trip_through_text(instance: Run) -> None:
    plain = to_plain(instance)
    assert parse(Run, plain) == instance
    loaded = load_text(dump_yaml(plain), "text")
    assert loaded == plain
    assert parse(Run, loaded) == instance
    assert to_plain(parse(Run, loaded)) == plain


def test_plain_has_kind_first_lists_and_its_own_order() -> None:
    plain = to_plain(Run(1, Adam(0.1), terms=(Term(),)))
    assert list(plain) == [name for name in Run.__dataclass_fields__]
    assert list(plain["optimizer"].items()) == [("kind", "adam"), ("lr", 0.1), ("betas", [0.9, 0.999])]
    assert plain["terms"] == [{"weight": 1.0, "layers": []}]
