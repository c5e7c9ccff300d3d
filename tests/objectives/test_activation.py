"""What units prefer: NumPy twins of the reductions, selections read by hand, images that do not know each other."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ensemble import invert
from ensemble.config.mistakes import ConfigError
from ensemble.objectives.activation import SCALE, Activation
from ensemble.objectives.selection import Unit, expand, parse_selection
from ensemble.objectives.terms import Slice, Totals
from ensemble.teachers.directions import read_direction
from ensemble.teachers.taps import Tap, Tapped
from ensemble.teachers.teacher import Observation, Profile
from models import ModelCard

CARD = ModelCard(
    "tiny", "test", 8, 4, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.3), class_names=("ant", "bee", "cat", "dog")
)
LAYER, TOKENS, LOGITS = Tap("layer"), Tap("tokens", 2), Tap("logits")
TAPS = {LAYER: Tapped(5, (3, 4)), TOKENS: Tapped(4, (7,), 2, class_token=True), LOGITS: Tapped(4)}


def profile(name: str = "t") -> Profile:
    return Profile(name, CARD, None, taps=TAPS)


def seen(images: int) -> dict[Tap, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        tap: torch.randn(images, at.channels, *at.positions, dtype=torch.float64, generator=rng)
        for tap, at in TAPS.items()
    }


def rows(term: Activation, taps: dict[Tap, torch.Tensor], cuts: tuple[int, ...] = ()) -> torch.Tensor:
    """a_i of each image, from slices that end at `cuts`."""
    n = len(taps[LOGITS])
    edges = [0, *cuts, n]
    sums = []
    for a, b in pairwise(edges):
        batch = Slice(a, b, n, torch.zeros(b - a, dtype=torch.int64), profile(), 8)
        part = {tap: value[a:b] for tap, value in taps.items()}
        sums.append(term.sums(Observation(taps[LOGITS][a:b], torch.zeros(2, 0), torch.zeros(b - a, 0), part), batch))
    return SCALE * sum(sums[1:], sums[0])[:, 0]


def twin(values: np.ndarray, reduction: str, power: int = 2) -> Any:
    """Of the map of one channel's axis direction, `values` (C, P) with the unit first."""
    own = values[0]
    match reduction:
        case "mean":
            return own.mean()
        case "sum":
            return own.sum()
        case "norm":
            return np.sqrt((own**2).sum())
        case _:
            cosine = own / np.sqrt((values**2).sum(0))
            return (own * np.maximum(cosine, 0.1) ** power).mean()


@pytest.mark.parametrize("reduction", ["mean", "sum", "norm", "dot_cos"])
@pytest.mark.parametrize("cuts", [(), (2,), (1, 4)])
def test_reductions(reduction: Any, cuts: tuple[int, ...]) -> None:
    taps = seen(5)
    term = Activation("layer:3,0", reduction=reduction)
    found = rows(term, taps, cuts)
    for i in range(5):
        channel = (3, 0)[i % 2]
        values = taps[LAYER][i].flatten(1).numpy()
        expected = twin(values[[channel, *(c for c in range(5) if c != channel)]], reduction)
        assert float(found[i]) == pytest.approx(expected)
    total = Totals({0: found[:, None] / SCALE}, [Slice(0, 5, 5, torch.zeros(5, dtype=torch.int64), profile(), 8)])
    assert float(term.loss(total, 0)) == pytest.approx(-float(found.sum()))
    torch.testing.assert_close(term.per_image(total, 0), -found)


def test_sums_signs_places_and_classes() -> None:
    taps = seen(1)
    layer, tokens, logits = (taps[tap][0] for tap in (LAYER, TOKENS, LOGITS))
    centre = layer[:, 1, 2]  # H // 2, W // 2 of 3 x 4
    cases = {
        "layer:2@centre": centre[2],
        "layer:{1,4}@0,3": layer[1, 0, 3] + layer[4, 0, 3],
        "-layer:2@centre": -centre[2],
        "layer:2@centre - 0.5*layer:0@centre": centre[2] - 0.5 * centre[0],
        ".2 * layer:2@centre + logits:Bee": 0.2 * centre[2] + logits[1],
        "2e-1 * layer:2@centre + logits:Bee": 0.2 * centre[2] + logits[1],
        "tokens#2:3@cls": tokens[3, 0],
        "tokens#2:3@patches": tokens[3, 2:].mean(),
        "tokens#2:3@t=4": tokens[3, 4],
        "tokens#2:3": tokens[3].mean(),
        "logits:{dog,0}": logits[3] + logits[0],
        "t/logits:dog": logits[3],
        "other/logits:dog + t/logits:ant": logits[0],
    }
    for text, expected in cases.items():
        assert float(rows(Activation(text), taps)[0]) == pytest.approx(float(expected)), text


def test_directions_from_files(tmp_path: Path) -> None:
    taps, rng = seen(1), np.random.default_rng(0)
    layer = taps[LAYER][0].numpy()
    direction, mask = rng.normal(size=5), rng.normal(size=(5, 3, 4))
    np.save(tmp_path / "d.npy", direction)
    np.save(tmp_path / "m.npy", mask)
    found = rows(Activation(f"layer:dir={tmp_path}/d.npy"), taps)[0]
    assert float(found) == pytest.approx((direction @ layer.reshape(5, -1)).mean())
    assert float(rows(Activation(f"layer:mask={tmp_path}/m.npy"), taps)[0]) == pytest.approx((mask * layer).sum())
    dot = direction @ layer.reshape(5, -1)
    cosine = dot / np.linalg.norm(direction) / np.linalg.norm(layer.reshape(5, -1), axis=0)
    found = rows(Activation(f"layer:dir={tmp_path}/d.npy", reduction="dot_cos", power=3), taps)[0]
    assert float(found) == pytest.approx((dot * np.maximum(cosine, 0.1) ** 3).mean())
    whole = (mask * layer).sum()
    cosine = whole / np.linalg.norm(mask) / np.linalg.norm(layer)
    found = rows(Activation(f"layer:mask={tmp_path}/m.npy", reduction="dot_cos", power=2), taps)[0]
    assert float(found) == pytest.approx(whole * max(cosine, 0.1) ** 2)
    np.save(tmp_path / "short.npy", direction[:3])
    for text, message in {
        f"layer:dir={tmp_path}/short.npy": r"short.npy holds numbers of shape \(3,\); layer has \(5,\)",
        f"layer:mask={tmp_path}/d.npy": r"d.npy holds numbers of shape \(5,\); layer has \(5, 3, 4\)",
        f"layer:dir={tmp_path}/none.npy": "none.npy cannot be read as a direction",
    }.items():
        with pytest.raises(ValueError, match=message):
            Activation(text).check([profile()])


def test_gradient_reaches_each_image_alone() -> None:
    taps = {tap: value.requires_grad_() for tap, value in seen(4).items()}
    for reduction in ("mean", "sum", "norm", "dot_cos"):
        term = Activation("layer:1 - 2*layer:3", reduction=reduction)
        assert torch.autograd.gradcheck(lambda v, term=term: rows(term, {**taps, LAYER: v}), taps[LAYER])
    (gradient,) = torch.autograd.grad(rows(Activation("layer:1"), taps)[2], taps[LAYER])
    assert gradient[2].any() and not gradient[[0, 1, 3]].any()


def test_what_selections_stand_for() -> None:
    def channels(text: str) -> list[tuple[int, ...]]:
        (part,) = parse_selection(text)
        return [unit.channels for unit in expand(part, TAPS[part.tap], CARD.class_names)]

    assert channels("layer:*") == [(0,), (1,), (2,), (3,), (4,)]
    assert channels("layer:1-3,0,{2,4}") == [(1,), (2,), (3,), (0,), (2, 4)]
    assert channels("logits:cat,ant,2") == [(2,), (0,), (2,)]
    several = parse_selection("a/b.c.in#2:1")  # the call stands before the side
    assert several[0].tap == Tap("b.c.in", 2)
    (part,) = parse_selection("net:size=8/blocks.3#2.in:5@centre")
    assert (part.teacher, part.tap, part.position) == ("net:size=8", Tap("blocks.3", 2, "in"), "centre")
    units = Activation(("layer:0-1 + logits:ant,bee", "-layer:4")).units_of(profile())
    assert [[unit.text() for unit in several] for several in units] == [
        ["layer:0", "logits:0"],
        ["layer:1", "logits:1"],
        ["layer:4"],
    ]
    term = Activation(("layer:0-1 - 0.5*t/logits:ant,bee", "-layer:4@centre"))
    assert term.names([profile()]) == ["layer:0 - 0.5*t/logits:0", "layer:1 - 0.5*t/logits:1", "-layer:4@centre"]
    assert [Activation(name).names([profile()]) for name in term.names([profile()])] == [
        [n] for n in term.names([profile()])
    ]


def test_names_mean_the_same_in_networks_that_order_classes_otherwise() -> None:
    other = Profile("u", replace(CARD, class_names=CARD.class_names[::-1]), None, taps=TAPS)
    term = Activation(("logits:cat,1,{dog,ant} - layer:0", "u/logits:cat", "2*logits:0"))
    names = term.names([profile(), other])
    assert names[:3] == ["logits:cat - layer:0", "logits:1 - layer:0", "logits:{dog,ant} - layer:0"]
    assert names[3:] == ["u/logits:1", "2*logits:0"]
    for teacher in (profile(), other):
        assert [unit for name in names for unit in Activation(name).units_of(teacher)] == term.units_of(teacher)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer:5", "layer: there is no channel 5; it has 0 to 4"),
        ("layer:3-1", "range 3-1 runs backwards"),
        ("logits:bea", "'bea' names no channel; did you mean 'bee'"),
        ("layer:bee", "'bee' names no channel; give channels by their numbers"),
        ("layer:0@9,9", r"layer@9,9: there is no such place; the layer's value is 3 x 4"),
        ("layer:0@cls", "there is no such place"),
        ("logits:0@centre", "there is no such place; the layer's value is a vector"),
        ("layer:0-2 + layer:0-1", "adds 3 and 2 units; let them be as many"),
        ("other/layer:0", "no teacher is called 'other'; they are t"),
    ],
)
def test_what_is_not_there_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Activation(text).check([profile()])


def test_tokens_that_nobody_knows_are_told() -> None:
    unknown = Tapped(4, (7,), None)
    for position in ("cls", "patches"):
        with pytest.raises(ValueError, match="which of 7 tokens are patches' is not known of this network"):
            Unit(Tap("tokens"), position=position).places(unknown)


@pytest.mark.parametrize(
    ("text", "message"), [("layer", "say which channels of layer"), (":3", "is no layer"), ("a#0:3", "is no layer")]
)
def test_what_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Activation(text)


@pytest.mark.parametrize("reduction", ["norm", "sum"])
def test_a_mask_is_not_reduced(reduction: Any) -> None:
    with pytest.raises(ConfigError, match=f"reduction: `{reduction}` is of a map, and a mask makes one number"):
        Activation("layer:mask=m.npy", reduction=reduction)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def made(units: Any, images: int, **more: Any) -> torch.Tensor:
    torch.manual_seed(0)
    results = invert(
        [(Net().eval(), CARD)],
        objectives=[{"kind": "activation", "units": units}],
        image={"batch_size": images, "start": {"kind": "grey"}},
        stages=[{"iterations": 12, "jitter": 2, "flip": 0.5}],
        **{"targets": [0], "precision": "fp64", "progress": False, "best_every": 0} | more,
    )
    assert results is not None
    return results.images


def test_a_batch_of_units_is_as_one_by_one() -> None:
    together = made(["conv:2,5", "conv:0@centre"], 3)
    for k, unit in enumerate(["conv:2", "conv:5", "conv:0@centre"]):
        torch.testing.assert_close(together[k : k + 1], made(unit, 1), rtol=0, atol=1e-5)
    torch.manual_seed(0)
    own = Net().double()
    before, after = (
        own.conv((x - 0.45) / 0.25).mean((2, 3))
        for x in (torch.full((3, 3, 8, 8), 0.5, dtype=torch.float64), together.double())
    )
    assert bool((after - before)[[0, 1], [2, 5]].min() > 0.05)


@pytest.mark.parametrize(
    ("units", "terms", "said"),
    [("conv:2", (), False), ("logits:1", (), True), ("conv:2", ({"kind": "cross_entropy"},), True)],
)
def test_passes_that_stop_before_the_logits_have_no_accuracy(
    units: str, terms: tuple, said: bool, tmp_path: Path
) -> None:
    results = invert(
        [(Net().eval(), CARD)],
        objectives=[{"kind": "activation", "units": units}, *terms],
        targets=[0],
        iterations=2,
        output=tmp_path / "run",
        record_every=1,
        progress=False,
    )
    assert results is not None
    assert all("accuracy" in read for read in results.summary["teachers"].values())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [any(key.endswith("/accuracy") for key in row) for row in rows] == [said] * 2


def test_images_that_a_unit_prefers_least() -> None:
    liked, disliked = made("conv:1", 1), made("-conv:1", 1)
    torch.manual_seed(0)
    conv = Net().conv
    high, low = (float(conv((x - 0.45) / 0.25)[0, 1].mean()) for x in (liked, disliked))
    assert high > low + 0.1


NUMBERED = tuple(sorted(map(str, range(12))))
"""As folders 0 to 11 sort."""


@pytest.mark.parametrize(
    ("text", "class_names", "channels"),
    [
        ("l:10", NUMBERED, [(10,)]),
        ("l:{10}", NUMBERED, [(10,)]),
        ("l:10-11", NUMBERED, [(10,), (11,)]),
        ("l:crane", (*"abcdefghijk", "crane"), [(11,)]),
        ("l:dog, hot", (*"abcdefghijk", "dog, hot"), [(11,)]),
        ("l:{1,2}, 4 ,7-8", (), [(1, 2), (4,), (7,), (8,)]),
    ],
)
def test_numbers_are_channels_and_names_are_classes(text: str, class_names: tuple[str, ...], channels: list) -> None:
    (summand,) = parse_selection(text)
    assert [unit.channels for unit in expand(summand, Tapped(12), class_names)] == channels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l:{1,2", "write channels as"),
        ("l:1,2}", "write channels as"),
        ("l:{1}2", "write channels as"),
        ("l:1,,2", "write channels as"),
        ("l:,", "write channels as"),
        ("l:\uff11", "names no channel"),
        ("l:3@corner", "@corner is no place"),
        ("l:3@-1,0", "@-1 is no place"),
        ("l:3@\uff11,1", "@\uff11 is no place"),
        ("l:" + "9" * 5000, "l: a number of 5000 digits is no channel"),
        ("l:3@1," + "9" * 5000, "@1 is no place"),
        ("l.in:a", "'a' names no channel; give channels by their numbers"),
        ("l:crane", "classes 0 and 1 are all called 'crane'"),
    ],
)
def test_malformed_channels_are_refused(text: str, message: str) -> None:
    (summand,) = parse_selection(text)
    with pytest.raises(ValueError, match=message):
        expand(summand, Tapped(5), ("crane", "Crane", "a", "b", "c"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l:dir=", "name a file, as dir=FILE.npy"),
        ("l:mask=", "name a file, as mask=FILE.npy"),
        ("l:mask=m.npy@1,2", "leave @1,2 out"),
        ("0*l:3", "a factor of 0"),
        ("1e400*l:3", "a factor of inf"),
    ],
)
def test_what_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_selection(text)


def test_a_direction_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "d.npy"
    for k in (3, 7):
        np.save(file, np.eye(32)[k])
        assert int(read_direction(str(file)).argmax()) == k
    np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="all values are 0"):
        read_direction(str(file))
    np.save(file, np.ones(3) * 1j)
    with pytest.raises(ValueError, match="complex"):
        read_direction(str(file))
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as a direction"):
        read_direction(str(file))
